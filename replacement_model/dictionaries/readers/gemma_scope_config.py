"""What Gemma Scope 2's folders are called and what their `config.json` says, whatever kind of dictionary they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.architectures.weight_files import read_json
from crosstrace.replacement_model.dictionaries.base import ActivationKind
from crosstrace.replacement_model.dictionaries.readers.base import check_config_keys, read_activation, site_of

PARAMETERS = "params.safetensors"
"""What one layer's file is called."""

_LAYER_FOLDER = re.compile(r"layer_(\d+)_(.+)")
_DEPTHS = re.compile(r"layer_(\d+(?:_\d+)+)_(?:width|l0)_.*")
_CONFIG_KEYS = (
    "hf_hook_point_in",
    "hf_hook_point_out",
    "width",
    "model_name",
    "architecture",
    "l0",
    "affine_connection",
    "type",
)
_HOOK = re.compile(r"(?:language_)?model\.(?:language_model\.)?layers\.(\d+)\.(.+)")


def families_in(folder: Path) -> dict[str, list[Path]]:
    """Return the folders `layer_{L}_{family}` in a folder, by the name of their family."""
    families: dict[str, list[Path]] = {}
    for sub in sorted(folder.iterdir()) if folder.is_dir() else []:
        if sub.is_dir() and (match := _LAYER_FOLDER.fullmatch(sub.name)):
            families.setdefault(match[2], []).append(sub)
    return families


def named_family(path: Path) -> list[Path]:
    """Return the folders that a family's short name stands for."""
    return [] if path.is_dir() else families_in(path.parent).get(path.name, [])


def family_patterns(inner: str) -> list[str]:
    """Return which files of a hub repository a folder or a family's short name stands for."""
    if not inner:
        return ["layer_*/config.json", "layer_*/params.safetensors"]
    parent, _, last = inner.rpartition("/")
    return [f"{inner}/*", f"{parent}/layer_*_{last}/*" if parent else f"layer_*_{last}/*"]


def by_layer(folders: Iterable[Path]) -> dict[int, Path]:
    """Return a family's folders by the layer in their name, ascending.

    Raises:
        ValueError: Two folders are of one layer.
    """
    found: dict[int, Path] = {}
    for folder in folders:
        layer = int(folder.name.split("_")[1])
        if layer in found:
            raise ValueError(
                f"{folder}: layer {layer} is also in {found[layer].name}; expected one folder for each layer"
            )
        found[layer] = folder
    return dict(sorted(found.items()))


def read_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path and the content of a folder's `config.json`.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or says something that cannot be read exactly.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: file is missing (Gemma Scope 2 keeps hook points there)")
    config = read_json(path, "an object with hook points")
    check_config_keys(path, config, _CONFIG_KEYS)
    architecture = config.get("architecture", "jump_relu")
    try:
        known = read_activation(path, architecture, None)
    except ValueError:
        known = None
    if known is None or known.kind is not ActivationKind.JUMP_RELU:
        raise ValueError(f"{path}: architecture {architecture!r} is not supported; supported: jump_relu, batch_topk")
    return path, config


def config_l0(config: Mapping[str, Any]) -> float | None:
    """Return how many features fire at a token, as a config has it; None if it does not say."""
    value = config.get("l0")
    return float(value) if isinstance(value, int | float) and value > 0 else None


def l0_by_layer(configs: Mapping[int, tuple[Path, Mapping[str, Any]]]) -> dict[int, float]:
    """Return how many features fire at a token of each layer whose config says it."""
    found = {layer: config_l0(config) for layer, (_, config) in configs.items()}
    return {layer: l0 for layer, l0 in found.items() if l0 is not None}


def hooks_of(path: Path, config: Mapping[str, Any], key: str) -> list[str]:
    """Return the hooks that a config names under a key.

    Raises:
        ValueError: There are none, or they are not text.
    """
    if key not in config:
        raise ValueError(f"{path}: {key} is missing; expected a site, or a list of one for each layer")
    value = config[key]
    hooks = [value] if isinstance(value, str) else value
    if not isinstance(hooks, list) or not hooks or not all(isinstance(hook, str) for hook in hooks):
        raise ValueError(f"{path}: {key} is {json.dumps(value)[:60]}; expected a site, or a list of one for each layer")
    return hooks


def hook_site(path: Path, hook: str, layer: int, known: Mapping[str, Site], key: str) -> Site:
    """Return the site that a hook names; the layer in it must be the file's own.

    Args:
        path: The config, for messages.
        hook: The hook.
        layer: The layer that the file is for.
        known: The hooks below a layer that can be read.
        key: The key of the config, for messages.

    Raises:
        ValueError: The hook is of another layer or another kind.
    """
    match = _HOOK.fullmatch(hook)
    if match is None or int(match[1]) != layer:
        raise ValueError(f"{path}: {key} names {hook!r}; expected a site of model.layers.{layer}")
    return site_of(match[2], path, known, key)


def layer_of(path: Path, hook: str, key: str) -> int:
    """Return the layer that a hook names.

    Raises:
        ValueError: It names none.
    """
    match = _HOOK.fullmatch(hook)
    if match is None:
        raise ValueError(f"{path}: {key} names {hook!r}; expected a site such as model.layers.0.output")
    return int(match[1])


def named_depths(folder: Path) -> list[int]:
    """Return the layers that the name of a crosscoder's folder has; empty if it has another name."""
    match = _DEPTHS.fullmatch(folder.name)
    return [int(depth) for depth in match[1].split("_")] if match else []


def is_crosscoder(config: Mapping[str, Any]) -> bool:
    """Tell whether a config with one file per layer is of a crosscoder: it says so, or all it reads is layers' outputs."""
    hooks = config.get("hf_hook_point_in")
    outputs = isinstance(hooks, list) and all(
        (match := _HOOK.fullmatch(str(hook))) and match[2] == "output" for hook in hooks
    )
    return config.get("type") == "crosscoder" or (config.get("type") is None and outputs)


def is_sae(path: Path, config: Mapping[str, Any]) -> bool:
    """Tell whether a config is of an SAE: it says so, or says nothing and names one site to read and write.

    Raises:
        ValueError: It is of a crosscoder, which has a file for each depth in one folder.
    """
    kind = config.get("type")
    if kind == "crosscoder":
        raise ValueError(f"{path}: type is 'crosscoder'; expected sae or transcoder in a folder of one layer")
    hooks = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    return kind == "sae" or (kind is None and hooks[0] == hooks[1])


def site_names(sites: Iterable[Site]) -> str:
    """Return sites as messages name them."""
    return ", ".join(sorted(site.value for site in sites))
