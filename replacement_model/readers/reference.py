"""From what the user writes (a folder or ``org/repo/sub/folder[@revision]``) to a reader."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from crosstrace.replacement_model.readers.base import TranscoderReader
from crosstrace.replacement_model.readers.circuit_tracer import read_circuit_tracer, read_config
from crosstrace.replacement_model.readers.gemma_scope import read_cross_layer, read_per_layer

_LAYER_FOLDER = re.compile(r"layer_(\d+)_(.+)")


def open_transcoders(reference: str | Path, check: bool = True) -> TranscoderReader:
    """Open transcoders by folder or hub reference; the format is told by the files there.

    Args:
        reference: a local folder, or ``org/repo/sub/folder[@revision]`` on the hub (fetched into its cache, which is
            enough offline). For Gemma Scope 2's per-layer files ``…/transcoder_all/width_16k_l0_small_affine`` names
            the family ``layer_*_width_16k_l0_small_affine``; a folder that holds one family needs no more.
        check: read a sample of decoder rows and refuse weight towards earlier layers; False reads headers alone.

    Raises:
        FileNotFoundError: no such folder, or a layer's file is missing.
        ValueError: no transcoders there, or files that are damaged or do not fit together.
        OSError: the hub cannot be reached or refuses.
    """
    text = str(reference)
    path = Path(text).expanduser()
    if path.is_dir() or _family(path):
        return _open_folder(path, text, check)
    if isinstance(reference, Path) or text.startswith(("/", ".", "~")) or text.count("/") < 2:
        raise FileNotFoundError(
            f"transcoder folder {text} does not exist (a hub reference is written org/repo/sub/folder[@revision])"
        )
    return _open_folder(_fetch(text), text, check)


def local_place(reference: str | Path) -> Path:
    """Where transcoders are on this machine: their folder, or for a family of per-layer folders the path it is named by.

    Args:
        reference: as for :func:`open_transcoders`; of one on the hub only the local cache is looked at.

    Raises:
        FileNotFoundError: no such folder, or not in the local cache.
    """
    path = Path(reference).expanduser()
    return path if path.is_dir() or _family(path) else _cached(str(reference))


def _cached(reference: str) -> Path:
    """The local folder of a hub reference, as :func:`_fetch` gives it, without asking the hub."""
    import huggingface_hub

    text, _, revision = reference.partition("@")
    if text.startswith(("/", ".", "~")) or text.count("/") < 2:
        raise FileNotFoundError(f"transcoder folder {reference} does not exist")
    org, repo, *sub = PurePosixPath(text).parts
    try:
        folder = huggingface_hub.snapshot_download(f"{org}/{repo}", revision=revision or None, local_files_only=True)
    except (OSError, ValueError):
        raise FileNotFoundError(f"{reference} is not in the local cache") from None
    return Path(folder).joinpath(*sub)


def _open_folder(folder: Path, name: str, check: bool) -> TranscoderReader:
    if (folder / "config.yaml").is_file():
        return read_circuit_tracer(folder, name, _listed_files(folder))
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


def _fetch(reference: str) -> Path:
    """Download the files of a hub reference; returns the local folder (which need not exist, for a family's name)."""
    text, _, revision = reference.partition("@")
    org, repo, *sub = PurePosixPath(text).parts
    inner = "/".join(sub)
    parent, last = "/".join(sub[:-1]), sub[-1]
    family = f"{parent}/layer_*_{last}/*" if parent else f"layer_*_{last}/*"
    return _snapshot(f"{org}/{repo}", revision or None, [f"{inner}/*", family], reference) / inner


def _snapshot(repo: str, revision: str | None, patterns: list[str], reference: str) -> Path:
    """A hub snapshot restricted to some files, with the hub's many errors told in one line."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise OSError(
            f"{reference}: {repo} needs its licence accepted on its hub page, then a login (hf auth login)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise OSError(f"{reference}: {repo} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise OSError(
            f"{reference}: {repo} is not on the hub, or is private and needs a login (hf auth login)"
        ) from error
    except errors.HFValidationError as error:
        raise ValueError(f"{reference}: not a hub reference (org/repo/sub/folder[@revision]): {error}") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise OSError(
            f"{reference}: not in the local cache and the hub cannot be reached; go online once, or give a local folder"
        ) from error


def _listed_files(folder: Path) -> list[Path] | None:
    """The files that ``transcoders:`` of a config.yaml lists: beside it, or ``hf://org/repo/path[@revision]``."""
    entries = read_config(folder).get("transcoders")
    if not entries:
        return None
    config = folder / "config.yaml"
    files = []
    seen: dict[str, int] = {}
    for layer, entry in enumerate(entries):
        if entry in seen:  # known from the wild; caught before anything is fetched
            raise ValueError(f"{config}: transcoders: lists {entry} twice, for layers {seen[entry]} and {layer}")
        seen[entry] = layer
        if entry.startswith("hf://"):
            text, _, revision = entry.removeprefix("hf://").partition("@")
            org, repo, *inner = PurePosixPath(text).parts
            files.append(_snapshot(f"{org}/{repo}", revision or None, ["/".join(inner)], entry).joinpath(*inner))
        else:
            files.append(folder / entry)
    return files
