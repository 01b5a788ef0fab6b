"""The Hugging Face hub: fetching files into its cache, headers alone for a plan, and one line for each of its errors.

Also what goes wrong with files fetched by other means: Git leaves pointers where Git LFS is not installed.
"""

from __future__ import annotations

import errno
import logging
import shutil
import struct
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

_LONGEST_HEADER = 100 * 2**20  # the limit of the safetensors format
_POINTER = b"version https://git-lfs.github.com/spec/"


def check_fetched(path: Path) -> None:
    """Refuse a file that is a Git LFS pointer.

    Raises:
        ValueError: Names the file and says what to do.
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ValueError(f"{path}: is a Git LFS pointer, not the file itself; run git lfs pull, or fetch it again")


def read_text(path: Path) -> str:
    """Return the text of a small file, such as a config.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is a Git LFS pointer, or not text in UTF-8; the file is named.
    """
    check_fetched(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file in UTF-8") from None


def fetch(repo: str, revision: str | None, patterns: Sequence[str], reference: str) -> Path:
    """Fetch some files of a repository into the hub's cache, which is enough offline.

    Args:
        repo: `org/name`.
        revision: A branch, tag or commit; None: the main branch.
        patterns: The files' paths in the repository, as `huggingface_hub` takes patterns.
        reference: What the user wrote, for messages.

    Returns:
        The folder of the snapshot.

    Raises:
        OSError: The files do not exist, need a permission, are out of reach, or do not fit on the disk; one line with
            what to do.
        ValueError: The name is not a hub reference.
    """
    import huggingface_hub

    with errors_in_one_line(reference, repo, revision):
        files = _planned(repo, revision, patterns)
        if files is not None and not files:
            _say_what_there_is(repo, revision, reference)
        _check_disk(sum(file.file_size or 0 for file in files or [] if file.will_download), repo, reference)
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))


def cached(repo: str, revision: str | None, patterns: Sequence[str], reference: str) -> Path:
    """Return the snapshot of some files in the cache without asking the hub; arguments as for `fetch`.

    Raises:
        FileNotFoundError: The files are not in the cache, or not all of them.
    """
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=list(patterns), local_files_only=True
            )
        )
    except (OSError, ValueError):
        raise FileNotFoundError(f"{reference} is not in the local cache") from None


def fetch_headers(
    repo: str, revision: str | None, patterns: Sequence[str], reference: str
) -> tuple[Path, TemporaryDirectory[str] | None]:
    """Fetch files as `fetch` does, but only the headers of tensor files that are not in the cache.

    Returns:
        A folder that looks like the snapshot, in which such files are holes past their headers, and the temporary
        folder that has to be kept while it is used (None: the folder is the cache).

    Raises:
        OSError: As for `fetch`.
        ValueError: As for `fetch`.
    """
    import huggingface_hub

    with errors_in_one_line(reference, repo, revision):
        files = _planned(repo, revision, patterns)
        absent = [file for file in files or [] if file.will_download and file.filename.endswith(".safetensors")]
        if files is None or not absent:
            return fetch(repo, revision, patterns, reference), None
        folder = TemporaryDirectory(prefix="crosstrace-headers-")
        for file in files:
            path = Path(folder.name, file.filename)
            path.parent.mkdir(parents=True, exist_ok=True)
            if file in absent:
                _write_header(repo, file, path)
            else:
                at = huggingface_hub.hf_hub_download(repo, file.filename, revision=file.commit_hash)
                path.symlink_to(Path(at).resolve())
        return Path(folder.name), folder


def keep_with(folder: TemporaryDirectory[str] | None, owner: object) -> None:
    """Keep a temporary folder for as long as an object that reads its files."""
    if folder is not None:
        weakref.finalize(owner, folder.cleanup)


def missing_bytes(repo: str, revision: str | None = None, patterns: Sequence[str] | None = None) -> int:
    """Return the bytes of a repository's files that are not in the cache; 0 if the hub cannot be asked."""
    try:
        return sum(file.file_size or 0 for file in _planned(repo, revision, patterns) or [] if file.will_download)
    except OSError:
        return 0


def _planned(repo: str, revision: str | None, patterns: Sequence[str] | None) -> list[DryRunFileInfo] | None:
    """The files and which of them would be downloaded; None if the hub is out of reach and the cache has to do."""
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        """A progress bar that shows nothing: bars are for downloads, not for asking what there is to download."""

        def __init__(self, *arguments: object, **settings: object) -> None:
            super().__init__(*arguments, **{**settings, "disable": True})

    logger = logging.getLogger("huggingface_hub._snapshot_download")
    logger.addFilter(_needs_saying)
    try:
        return huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=None if patterns is None else list(patterns),
            dry_run=True,
            tqdm_class=Silent,
        )
    except errors.DryRunError:
        return None
    finally:
        logger.removeFilter(_needs_saying)


def _needs_saying(record: logging.LogRecord) -> bool:
    """Pass on a log record unless our own message says it: patterns that match nothing, a hub that does not answer."""
    message = record.getMessage()
    return not any(words in message for words in ("No files matched", "Retrying in", "thrown while requesting"))


def _say_what_there_is(repo: str, revision: str | None, reference: str) -> None:
    import huggingface_hub

    files = huggingface_hub.HfApi().list_repo_files(repo, revision=revision)
    folders = sorted({str(PurePosixPath(file).parent) for file in files if file.endswith((".safetensors", ".yaml"))})
    shown = ", ".join(folders[:10]) + (", …" if len(folders) > 10 else "")
    lacks = "such folder" if split_reference(reference)[1] else "transcoders at its root"
    raise FileNotFoundError(f"{reference}: {repo} has no {lacks}; folders there with weights: {shown or 'none'}")


def _check_disk(need: int, repo: str, reference: str) -> None:
    from huggingface_hub import constants

    from crosstrace.replacement_model.memory import format_bytes

    cache = Path(constants.HF_HUB_CACHE).expanduser()
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if need > free:
        raise OSError(
            errno.ENOSPC,
            f"{reference}: {repo} needs {format_bytes(need)} more on disk and {cache} has {format_bytes(free)} free; "
            "set HF_HOME to a larger disk",
        )


def _write_header(repo: str, file: DryRunFileInfo, path: Path) -> None:
    """Write the header of a tensor file on the hub to a file of the same size that takes no room on the disk."""
    from huggingface_hub import HfFileSystem

    with HfFileSystem().open(f"{repo}@{file.commit_hash}/{file.filename}", "rb", block_size=2**16) as remote:
        start = remote.read(8)
        (length,) = struct.unpack("<Q", start)
        header = remote.read(min(length, _LONGEST_HEADER))
    with path.open("wb") as local:
        local.write(start + header)
        local.truncate(file.file_size or local.tell())


def split_uri(uri: str) -> tuple[str, str, str | None]:
    """Split `hf://org/repo/path`, with `@revision` or `?revision=…` or neither, as `split_reference` splits.

    Example:
        >>> split_uri("hf://org/repo/folder/file.safetensors?revision=v2")
        ('org/repo', 'folder/file.safetensors', 'v2')
    """
    text, _, query = uri.removeprefix("hf://").partition("?")
    repo, inner, revision = split_reference(text)
    return repo, inner, revision or query.removeprefix("revision=") or None


def split_reference(reference: str) -> tuple[str, str, str | None]:
    """Split `org/repo/sub/folder@revision` into `org/repo`, `sub/folder` and the revision or None.

    Example:
        >>> split_reference("org/repo/sub/folder@v2")
        ('org/repo', 'sub/folder', 'v2')
    """
    text, _, revision = reference.partition("@")
    org, repo, *inner = PurePosixPath(text).parts
    return f"{org}/{repo}", "/".join(inner), revision or None


@contextmanager
def errors_in_one_line(reference: str, repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the hub's library raises, also as another error's cause, into one line with what to do.

    Args:
        reference: What the user wrote, for messages.
        repo: `org/name`.
        revision: The revision asked for.

    Raises:
        OSError: The hub refused, or could not be reached.
        ValueError: The name is not a hub reference.
    """
    from huggingface_hub import errors

    logger = logging.getLogger("huggingface_hub.utils._http")
    logger.addFilter(_needs_saying)
    try:
        yield
    except (OSError, ValueError) as error:
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
            causes.append(cause)

        def caused_by(*kinds: type[BaseException]) -> BaseException | None:
            return next((cause for cause in causes if isinstance(cause, kinds)), None)

        if caused_by(errors.GatedRepoError):
            raise OSError(
                f"{reference}: {repo} needs its licence accepted on its hub page, then a login (hf auth login)"
            ) from error
        if caused_by(errors.RevisionNotFoundError):
            raise OSError(f"{reference}: {repo} has no revision {revision!r}") from error
        if caused_by(errors.RepositoryNotFoundError):
            raise OSError(
                f"{reference}: {repo} is not on the hub, or is private and needs a login (hf auth login)"
            ) from error
        if invalid := caused_by(errors.HFValidationError):
            raise ValueError(
                f"{reference}: not a hub reference (org/repo[/sub/folder][@revision]): {invalid}"
            ) from error
        absent = caused_by(errors.RemoteEntryNotFoundError)  # one file of a repository that is there
        if not absent and caused_by(errors.LocalEntryNotFoundError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled):
            raise OSError(
                f"{reference}: not in the local cache and the hub cannot be reached; go online once, or give a local folder"
            ) from error
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            text = error.strerror if str(error.strerror).startswith(reference) else f"{reference}: the disk is full"
            raise OSError(text) from error
        raise
    finally:
        logger.removeFilter(_needs_saying)
