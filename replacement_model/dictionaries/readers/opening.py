"""From what the user writes (a folder or ``org/repo/sub/folder[@revision]``) to a reader."""

from __future__ import annotations

import re
import weakref
from pathlib import Path
from tempfile import TemporaryDirectory

from crosstrace.replacement_model import hub
from crosstrace.replacement_model.dictionaries.readers.base import TranscoderReader
from crosstrace.replacement_model.dictionaries.readers.circuit_tracer import read_circuit_tracer, read_config
from crosstrace.replacement_model.dictionaries.readers.gemma_scope import read_cross_layer, read_per_layer

_LAYER_FOLDER = re.compile(r"layer_(\d+)_(.+)")


def open_transcoders(reference: str | Path, check: bool = True) -> TranscoderReader:
    """Open transcoders by folder or hub reference; the format is told by the files there.

    Args:
        reference: a local folder, or ``org/repo/sub/folder[@revision]`` on the hub (fetched into its cache, which is
            enough offline). For Gemma Scope 2's per-layer files ``…/transcoder_all/width_16k_l0_small_affine`` names
            the family ``layer_*_width_16k_l0_small_affine``; a folder that holds one family needs no more.
        check: read a sample of decoder rows and refuse weight towards earlier layers; False reads headers alone, and of
            files that are only on the hub fetches no more than those: for plans, not for tracing.

    Raises:
        FileNotFoundError: no such folder, or a layer's file is missing.
        ValueError: no transcoders there, or files that are damaged or do not fit together.
        OSError: the hub cannot be reached or refuses.
    """
    text, path = str(reference), _local(reference)
    if path is not None:
        return _open_folder(path, text, check)
    repo, inner, revision = _on_hub(reference)
    if check:
        return _open_folder(hub.fetch(repo, revision, _patterns(inner), text) / inner, text, check)
    folder, temporary = hub.fetch_headers(repo, revision, _patterns(inner), text)
    reader = _open_folder(folder / inner, text, check)
    _keep(temporary, reader)
    return reader


def download_bytes(reference: str | Path) -> int:
    """What :func:`open_transcoders` would download, in bytes; 0 for a folder, and where the hub cannot be asked.

    Raises:
        FileNotFoundError: neither a folder nor written as a hub reference.
    """
    if _local(reference) is not None:
        return 0
    repo, inner, revision = _on_hub(reference)
    return hub.missing_bytes(repo, revision, _patterns(inner))


def _keep(folder: TemporaryDirectory[str] | None, reader: TranscoderReader) -> None:
    """Let a temporary folder live as long as the reader of its files."""
    if folder is not None:
        weakref.finalize(reader, folder.cleanup)


def local_place(reference: str | Path) -> Path:
    """Where transcoders are on this machine: their folder, or for a family of per-layer folders the path it is named by.

    Args:
        reference: as for :func:`open_transcoders`; of one on the hub only the local cache is looked at.

    Raises:
        FileNotFoundError: no such folder, or not in the local cache.
    """
    path = _local(reference)
    if path is not None:
        return path
    repo, inner, revision = _on_hub(reference)
    return hub.cached(repo, revision, _patterns(inner), str(reference)) / inner


def _local(reference: str | Path) -> Path | None:
    """A folder, or the path that a family of per-layer folders is named by, if it is on this machine."""
    path = Path(reference).expanduser()
    return path if path.is_dir() or _family(path) else None


def _on_hub(reference: str | Path) -> tuple[str, str, str | None]:
    """The repository, the path in it and the revision of what is no folder here."""
    text = str(reference)
    # A revision may have slashes of its own: refs/pr/1.
    if isinstance(reference, Path) or text.startswith(("/", ".", "~")) or text.partition("@")[0].count("/") < 2:
        raise FileNotFoundError(
            f"transcoder folder {text} does not exist (a hub reference is written org/repo/sub/folder[@revision])"
        )
    return hub.split_reference(text)


def _open_folder(folder: Path, name: str, check: bool) -> TranscoderReader:
    if (folder / "config.yaml").is_file():
        files, temporary = _listed_files(folder, check)
        reader = read_circuit_tracer(folder, name, files)
        for part in temporary:
            _keep(part, reader)
        return reader
    if list(folder.glob("params_layer_*.safetensors")):
        return read_cross_layer(folder, name, check)
    family = _family(folder)
    if family:
        return read_per_layer(family, folder.parent, name)
    families: dict[str, list[Path]] = {}
    for sub in sorted(folder.iterdir()) if folder.is_dir() else []:
        if sub.is_dir() and (match := _LAYER_FOLDER.fullmatch(sub.name)):
            families.setdefault(match[2], []).append(sub)
    if len(families) == 1:
        return read_per_layer(next(iter(families.values())), folder, name)
    if families:
        names = sorted(families)
        raise ValueError(
            f"{folder}: holds several families; name one, e.g. {folder}/{names[0]} (of {', '.join(names)})"
        )
    raise FileNotFoundError(
        f"{folder}: no transcoders here; expected params_layer_0.safetensors, layer_0_…/params.safetensors or config.yaml"
    )


def _family(path: Path) -> list[Path]:
    """The per-layer folders that a family's short name stands for."""
    if path.is_dir() or not path.parent.is_dir():
        return []
    return [
        sub
        for sub in sorted(path.parent.iterdir())
        if sub.is_dir() and (match := _LAYER_FOLDER.fullmatch(sub.name)) and match[2] == path.name
    ]


def _patterns(inner: str) -> list[str]:
    """Of the files that a hub reference's path stands for: a folder's, or a family's."""
    parent, _, last = inner.rpartition("/")
    return [f"{inner}/*", f"{parent}/layer_*_{last}/*" if parent else f"layer_*_{last}/*"]


def _listed_files(folder: Path, whole: bool) -> tuple[list[Path] | None, list[TemporaryDirectory[str] | None]]:
    """The files that ``transcoders:`` of a config.yaml lists: beside it, or ``hf://org/repo/path[@revision]``.

    Args:
        whole: False fetches only the headers of files that are on the hub alone, into temporary folders.
    """
    entries = read_config(folder).get("transcoders")
    if not entries:
        return None, []
    config = folder / "config.yaml"
    files: list[Path] = []
    temporary: list[TemporaryDirectory[str] | None] = []
    seen: dict[str, int] = {}
    for layer, entry in enumerate(entries):
        if entry in seen:  # known from the wild; caught before anything is fetched
            raise ValueError(f"{config}: transcoders: lists {entry} twice, for layers {seen[entry]} and {layer}")
        seen[entry] = layer
    for entry in entries:
        if not entry.startswith("hf://"):
            files.append(folder / entry)
            continue
        repo, inner, revision = hub.split_reference(entry.removeprefix("hf://"))
        if whole:
            files.append(hub.fetch(repo, revision, [inner], entry) / inner)
        else:
            snapshot, kept = hub.fetch_headers(repo, revision, [inner], entry)
            files.append(snapshot / inner)
            temporary.append(kept)
    return files, temporary
