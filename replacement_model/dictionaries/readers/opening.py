"""From what the user writes (a folder or `org/repo[/sub/folder][@revision]`) to a reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crosstrace.replacement_model import hub
from crosstrace.replacement_model.dictionaries.base import SparseDictionary, TranscoderReader
from crosstrace.replacement_model.dictionaries.readers.circuit_tracer_config import CONFIG, Settings, read_settings
from crosstrace.replacement_model.dictionaries.readers.joined_saes import JoinedSaes
from crosstrace.replacement_model.dictionaries.readers.registry import format_of, known_formats


def open_transcoders(reference: str | Path, check: bool = True) -> TranscoderReader:
    """Open transcoders by folder or hub reference; the files there tell the format.

    Args:
        reference: A local folder, or `org/repo/sub/folder[@revision]` on the hub (fetched into its cache, which is
            enough offline); `org/repo[@revision]` where the files lie at the repository's root. For Gemma
            Scope 2's per-layer files `…/transcoder_all/width_16k_l0_small_affine` names
            the family `layer_*_width_16k_l0_small_affine`; a folder that holds one family needs no more.
        check: Whether to read a sample of decoder rows and refuse weight towards earlier layers. Without it only
            headers are read, and only headers are fetched of files that are not on this machine: for plans, not for
            tracing.

    Returns:
        The reader of the files, whichever format they have.

    Raises:
        FileNotFoundError: The folder does not exist, holds no transcoders, or lacks a layer's file.
        ValueError: The files are damaged, do not fit together, or hold another kind of dictionary.
        OSError: The hub cannot be reached or refuses.

    Example:
        >>> open_transcoders("google/gemma-scope-2-270m-it/transcoder_all/width_16k_l0_small_affine").n_layers
        18
    """
    dictionary = _open(reference, check)
    if not isinstance(dictionary, TranscoderReader):
        raise ValueError(f"{reference}: holds {_described(dictionary)}, not transcoders")
    return dictionary


def open_sae(reference: str | Path | Sequence[str | Path], check: bool = True) -> SparseDictionary:
    """Open SAEs or a crosscoder by folder or hub reference; the files there tell the format.

    Args:
        reference: One layer's folder (`…/resid_post/layer_9_width_16k_l0_small`), a folder that holds a family, its
            short name (`…/resid_post_all/width_16k_l0_small`), or a crosscoder's folder; local, or
            `org/repo/sub/folder[@revision]` on the hub. Several references are read as one dictionary; they must be of one
            site and of different layers.
        check: Whether to read biases and thresholds. Without it only headers are read, and only headers are fetched of
            files that are not on this machine: for plans.

    Returns:
        The reader of the files, whichever format they have.

    Raises:
        FileNotFoundError: The folder does not exist, holds no SAEs, or lacks a file.
        ValueError: The files are damaged, do not fit together, or hold another kind of dictionary.
        OSError: The hub cannot be reached or refuses.

    Example:
        >>> open_sae("google/gemma-scope-2-270m-pt/resid_post_all/width_16k_l0_small").layers
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17)
    """
    references = [reference] if isinstance(reference, str | Path) else list(reference)
    if not references:
        raise ValueError("no SAE is named; give a folder or org/repo/sub/folder[@revision]")
    found = []
    for one in references:
        dictionary = _open(one, check, "SAE")
        if dictionary.reads is not dictionary.writes:
            raise ValueError(f"{one}: holds {_described(dictionary)}, not an SAE")
        found.append(dictionary)
    return found[0] if len(found) == 1 else JoinedSaes(found)


def _described(dictionary: SparseDictionary) -> str:
    if isinstance(dictionary, TranscoderReader):
        return "transcoders"
    return f"a dictionary from {dictionary.reads.value} to {dictionary.writes.value}"


def _open(reference: str | Path, check: bool, kind: str = "transcoder") -> SparseDictionary:
    text, path = str(reference), _local(reference)
    if path is not None:
        return _open_folder(path, text, check, kind)
    repo, inner, revision = _on_hub(reference, kind)
    patterns = _patterns(inner)
    if not inner and (config := _config(reference)):  # `sub/folder/*` has everything that a config there may list
        patterns += config.files_beside()
    if check:
        return _open_folder(hub.fetch(repo, revision, patterns, text) / inner, text, check, kind)
    folder, temporary = hub.fetch_headers(repo, revision, patterns, text)
    reader = _open_folder(folder / inner, text, check, kind)
    hub.keep_with(temporary, reader)
    return reader


def download_bytes(reference: str | Path) -> int:
    """Return how many bytes `open_transcoders` would download; 0 if the hub cannot be asked.

    Files that a `config.yaml` lists under `transcoders:` count too, wherever the config itself is.

    Raises:
        FileNotFoundError: The reference is neither a folder nor written as a hub reference.
        ValueError: The config is damaged.
    """
    config = _config(reference)
    places = config.files_on_hub() if config else {}
    if _local(reference) is None:
        repo, inner, revision = _on_hub(reference)
        beside = config.files_beside() if config else []
        places.setdefault((repo, revision), []).extend([*_patterns(inner), *beside])
    return sum(hub.missing_bytes(repo, revision, files) for (repo, revision), files in places.items())


def _config(reference: str | Path) -> Settings | None:
    """What the `config.yaml` of a reference says, fetched alone; None where there is none, or it is out of reach."""
    folder = _local(reference)
    if folder is None:
        repo, inner, revision = _on_hub(reference)
        try:
            folder = hub.fetch(repo, revision, [f"{inner}/{CONFIG}" if inner else CONFIG], str(reference)) / inner
        except OSError:
            return None
    return read_settings(folder, str(reference)) if (folder / CONFIG).is_file() else None


def local_place(reference: str | Path) -> Path:
    """Return where transcoders are on this machine: their folder, or the path that names a family of folders.

    Args:
        reference: As for `open_transcoders`; for one on the hub only the local cache is looked at.

    Raises:
        FileNotFoundError: The folder does not exist, or is not in the local cache.
    """
    path = _local(reference)
    if path is not None:
        return path
    repo, inner, revision = _on_hub(reference)
    return hub.cached(repo, revision, _patterns(inner), str(reference)) / inner


def _local(reference: str | Path) -> Path | None:
    """A folder, or another path that a format knows, if it is on this machine."""
    path = Path(reference).expanduser()
    return path if path.is_dir() or format_of(path) else None


def _on_hub(reference: str | Path, kind: str = "transcoder") -> tuple[str, str, str | None]:
    """The repository, the path in it and the revision of a reference that is not a folder here."""
    text = str(reference)
    # A revision may have slashes of its own: refs/pr/1.
    if isinstance(reference, Path) or text.startswith(("/", ".", "~")) or text.partition("@")[0].count("/") < 1:
        raise FileNotFoundError(
            f"{kind} folder {text} does not exist (a hub reference is written org/repo[/sub/folder][@revision])"
        )
    return hub.split_reference(text)


def _open_folder(path: Path, name: str, check: bool, kind: str) -> SparseDictionary:
    file_format = format_of(path)
    if file_format is None:
        expected = ", ".join(f"{known.files} ({known.name})" for known in known_formats())
        raise FileNotFoundError(f"{path}: no {kind}s here; expected one of: {expected}")
    return file_format.open(path, name, check)


def _patterns(inner: str) -> list[str]:
    """The files of a hub repository that a reference's path stands for, whichever format they have."""
    return list(dict.fromkeys(pattern for known in known_formats() for pattern in known.patterns(inner)))
