"""circuit-tracer's `config.yaml`: kind, sites, activation, and the files that it may list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import yaml

from crosstrace.replacement_model import hub
from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.dictionaries.base import Activation, ActivationKind
from crosstrace.replacement_model.dictionaries.readers.base import check_config_keys, read_activation, site_of
from crosstrace.replacement_model.dictionaries.readers.mapped_tensors import TensorFile

CONFIG = "config.yaml"
_INPUT_HOOKS = {
    "hook_resid_mid": Site.MLP_INPUT,
    "mlp.hook_in": Site.MLP_INPUT_NORMED,
}
_OUTPUT_HOOKS = {"hook_mlp_out": Site.MLP_OUTPUT}
_PER_LAYER, _CROSS_LAYER = "transcoder_set", "cross_layer_transcoder"
_KEYS = (
    "model_name",
    "model_kind",
    "feature_input_hook",
    "feature_output_hook",
    "scan",
    "transcoders",
    "activation",
    "k",
    "skip_connection",
)
_PATH_KEYS = ("path", "filepath")  # of an entry that is a mapping

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What a `config.yaml` says.

    Attributes:
        folder: Where it lies; files that it lists are named from here.
        name: How graphs and messages name the transcoders.
        kind: `transcoder_set` or `cross_layer_transcoder`.
        reads: The site that encoders read.
        activation: The activation, if it names one.
        skip: What it says of a skip connection; None: nothing.
        transcoders: The files that it lists, layer 0 first, as written; None: they lie beside it.
    """

    folder: Path
    name: str
    kind: str
    reads: Site
    activation: Activation | None
    skip: Any
    transcoders: list[str] | None

    @property
    def path(self) -> Path:
        """The config file."""
        return self.folder / CONFIG

    @property
    def cross_layer(self) -> bool:
        """Whether features write to later layers too."""
        return self.kind == _CROSS_LAYER

    def agreed_activation(self, files: Sequence[TensorFile], thresholds: Sequence[str]) -> Activation:
        """Return the activation that config and files agree on.

        Args:
            files: Each layer's file.
            thresholds: The key of each layer's thresholds, whether or not the file has them.

        Raises:
            ValueError: They contradict each other; the config, the file and the tensor are named.
        """
        said = self.activation
        stored_k = [file.whole_number("k") if "k" in file.keys else None for file in files]
        if stored_k[0] is not None and said is None:
            said = read_activation(files[0].path, "topk", stored_k[0])
        for file, k in zip(files, stored_k, strict=True):
            if k is not None and (said is None or k != said.k):
                raise ValueError(f"{file.path}: k is {k}, but {self._says(said, files[0])}")
            if k is None and stored_k[0] is not None:
                raise ValueError(f"{file.path}: tensor k is missing, which {files[0].path} has")
        has_thresholds = [key in file.keys for file, key in zip(files, thresholds, strict=True)]
        if said is None:
            return Activation(ActivationKind.JUMP_RELU if any(has_thresholds) else ActivationKind.RELU)
        for file, key, has in zip(files, thresholds, has_thresholds, strict=True):
            if has != (said.kind is ActivationKind.JUMP_RELU):
                raise ValueError(
                    f"{file.path}: {'has' if has else 'lacks'} thresholds ({key}), but {self._says(said, files[0])}"
                )
        return said

    def _says(self, said: Activation | None, first: TensorFile) -> str:
        return f"{self.path if self.activation else first.path} makes it {said or 'no TopK'}"

    def listed_files(self, whole: bool) -> tuple[list[Path] | None, list[TemporaryDirectory[str] | None]]:
        """Return the files that the config lists: beside it, or `hf://org/repo/path[@revision]`.

        Args:
            whole: Whether to fetch files that are on the hub alone; otherwise only their headers are fetched, into
                temporary folders.

        Returns:
            The files, None if the config lists none; and the temporary folders.

        Raises:
            OSError: A file cannot be fetched.
            ValueError: A file is listed twice; it is named.
        """
        if self.transcoders is None:
            return None, []
        if repeated := first_repeated(self.transcoders):  # known from the wild; caught before anything is fetched
            entry, first, again = repeated
            raise ValueError(f"{self.path}: transcoders: lists {entry} twice, for layers {first} and {again}")
        files: list[Path] = []
        temporary: list[TemporaryDirectory[str] | None] = []
        for entry in self.transcoders:
            if not _on_hub(entry):
                files.append(self.folder / Path(entry).expanduser())
                continue
            repo, inner, revision = hub.split_uri(entry)
            if whole:
                files.append(hub.fetch(repo, revision, [inner], entry) / inner)
            else:
                snapshot, kept = hub.fetch_headers(repo, revision, [inner], entry)
                files.append(snapshot / inner)
                temporary.append(kept)
        return files, temporary

    def files_on_hub(self) -> dict[tuple[str, str | None], list[str]]:
        """Return the listed files that are on the hub: by repository and revision, their paths in it."""
        found: dict[tuple[str, str | None], list[str]] = {}
        for entry in filter(_on_hub, self.transcoders or ()):
            repo, inner, revision = hub.split_uri(entry)
            found.setdefault((repo, revision), []).append(inner)
        return found

    def files_beside(self) -> list[str]:
        """Return the listed files that lie with the config, as paths from its folder."""
        return [entry for entry in self.transcoders or () if not _on_hub(entry)]


def _on_hub(entry: str) -> bool:
    return entry.startswith("hf://")


def read_settings(folder: Path, name: str) -> Settings:
    """Read the `config.yaml` of a folder.

    Raises:
        ValueError: It is damaged, or says something that is not known; the file, the key and the value are named.
    """
    path = folder / CONFIG
    try:
        config = yaml.safe_load(hub.read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: holds {type(config).__name__}; expected keys such as {', '.join(_KEYS[:3])}")
    listed, numbered = _listed(path, config.get("transcoders"))
    # The oldest configs have no kind, and list each layer as a mapping.
    kind = config.get("model_kind", _PER_LAYER if numbered else None)
    if kind not in (_PER_LAYER, _CROSS_LAYER):
        raise ValueError(f"{path}: model_kind is {kind!r}; expected {_PER_LAYER} or {_CROSS_LAYER}")
    check_config_keys(path, config, _KEYS)
    site = site_of(str(config.get("feature_input_hook")), path, _INPUT_HOOKS, "feature_input_hook")
    site_of(str(config.get("feature_output_hook")), path, _OUTPUT_HOOKS, "feature_output_hook")
    activation = read_activation(path, config.get("activation"), config.get("k"))
    return Settings(folder, name, kind, site, activation, config.get("skip_connection"), listed)


def _listed(path: Path, entries: Any) -> tuple[list[str] | None, bool]:
    """The files that `transcoders:` lists, by layer, and whether they came with their layers' numbers."""
    if entries is None:
        return None, False
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: transcoders is {str(entries)[:60]!r}; expected a list of files, layer 0 first")
    if not any(isinstance(entry, dict) for entry in entries):
        for entry in entries:
            _check_path(path, entry, entry)
        return entries, False
    by_layer: dict[int, str] = {}
    for entry in entries:
        layer = entry.get("layer") if isinstance(entry, dict) else None
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise ValueError(f"{path}: transcoders: {entry!r} has no layer; expected layer and {_PATH_KEYS[0]}")
        file: Any = next((entry[key] for key in _PATH_KEYS if key in entry), None)
        _check_path(path, file, entry)
        if layer in by_layer:
            raise ValueError(f"{path}: transcoders: lists layer {layer} twice, as {by_layer[layer]} and {file}")
        by_layer[layer] = file
    for layer in range(len(by_layer)):
        if layer not in by_layer:
            raise ValueError(f"{path}: transcoders: lists no file for layer {layer} (layers {sorted(by_layer)})")
    return [by_layer[layer] for layer in range(len(by_layer))], True


def _check_path(path: Path, file: Any, entry: Any) -> None:
    if not isinstance(file, str) or not file.partition("?")[0].partition("@")[0].endswith(".safetensors"):
        raise ValueError(f"{path}: transcoders: {entry!r} names no .safetensors file")


def first_repeated(entries: Sequence[T]) -> tuple[T, int, int] | None:
    """Return the first entry that stands twice, with both of its places; None if there is none."""
    seen: dict[T, int] = {}
    for place, entry in enumerate(entries):
        if entry in seen:
            return entry, seen[entry], place
        seen[entry] = place
    return None
