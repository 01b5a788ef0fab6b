"""The supported architectures: the name in `config.json`, and what describes a model of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from crosstrace.replacement_model.architectures import gemma3
from crosstrace.replacement_model.architectures.description import ModelDescription

Describe = Callable[[Any, str, str, bool], ModelDescription]
"""`describe(config, architecture, source, chat)`: the `transformers` config, the architecture's name, what the user
called the model, and whether its tokenizer has a chat template. Raises `ValueError` for a variant that cannot be traced."""

_ARCHITECTURES: dict[str, Describe] = {}

SUPPORTED_ARCHITECTURES: Mapping[str, Describe] = MappingProxyType(_ARCHITECTURES)
"""The supported architectures by name."""


def register_architecture(name: str, describe: Describe) -> None:
    """Support another architecture.

    `transformers` has to know the architecture, from its own library or through `AutoConfig.register` and
    `AutoModelForCausalLM.register`. Its layers must have the parts that `ModulePaths` names: RMS norms before and after
    attention and MLP, and attention whose `eager` implementation returns its probabilities.

    Args:
        name: The architecture as `config.json` names it.
        describe: Returns the description of a model of this architecture; see `Describe`.

    Raises:
        ValueError: The name is taken by another description.

    Example:
        >>> register_architecture("MyGemmaForCausalLM", my_describe)
    """
    if _ARCHITECTURES.setdefault(name, describe) is not describe:
        raise ValueError(f"architecture {name} is registered already")


def architecture_of(config: Any, source: str) -> str:
    """Return the name of a config's architecture.

    Raises:
        ValueError: The architecture is not supported; the supported ones are named.
    """
    name = (getattr(config, "architectures", None) or [type(config).__name__])[0]
    if name not in _ARCHITECTURES:
        raise ValueError(f"{source}: architecture {name} is not supported; supported: {', '.join(_ARCHITECTURES)}")
    return name


def describe(config: Any, source: str, chat: bool = False) -> ModelDescription:
    """Describe a model from its `transformers` config.

    Args:
        config: The config of the checkpoint.
        source: What the user called the model, for messages.
        chat: Whether the tokenizer has a chat template.

    Raises:
        ValueError: The architecture is not supported, or a variant of it that cannot be traced.
    """
    name = architecture_of(config, source)
    return _ARCHITECTURES[name](config, name, source, chat)


for _name in gemma3.ARCHITECTURES:
    register_architecture(_name, gemma3.describe)
