"""Loading a base model, its config and its tokenizer from a folder or the hub, as `transformers` reads them."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.architectures.registry import architecture_of, describe
from crosstrace.replacement_model.hub import errors_in_one_line


def load_model(
    source: str, dtype: torch.dtype | None, device: torch.device, device_map: str | dict[str, Any] | None = None
) -> tuple[nn.Module, Any, ModelDescription]:
    """Load a model and its tokenizer.

    Args:
        source: A folder, or `org/name` on the hub.
        dtype: The dtype of the weights; None: as stored.
        device: Where the model goes, unless `device_map` says.
        device_map: The device of each part, as accelerate takes it.

    Returns:
        The module (evaluation mode; eager attention, so that its probabilities can be read), the tokenizer or None if
        the folder has none, and the description.

    Raises:
        ValueError: The architecture is not supported, or the files are damaged.
        OSError: The folder or repository cannot be read; one line that names it.
    """
    import transformers
    from transformers.utils import logging as transformers_logging

    name = _folder_or_name(source)
    placement = {}
    if device_map is not None:
        if importlib.util.find_spec("accelerate") is None:
            raise ValueError("a device map needs accelerate, which is not installed; pip install accelerate")
        placement["device_map"] = device_map
    bars_were_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with _named(source, name):
            config, tokenizer, description = _described(source, name)
            loader: Any = getattr(transformers, architecture_of(config, source), transformers.AutoModelForCausalLM)
            model, report = loader.from_pretrained(
                name, dtype=dtype or "auto", attn_implementation="eager", output_loading_info=True, **placement
            )
            if report["missing_keys"]:  # transformers would go on with random numbers in their place
                missing = sorted(report["missing_keys"])
                raise ValueError(f"{len(missing)} tensors are missing from its files, the first is {missing[0]}")
    finally:
        if bars_were_on:
            transformers_logging.enable_progress_bar()
    model = model.eval().requires_grad_(False)
    return model if placement else model.to(device), tokenizer, description


def load_config(source: str) -> tuple[Any, ModelDescription]:
    """Load the `transformers` config of a model and its description, without the weights.

    Args:
        source: A folder, or `org/name` on the hub.

    Raises:
        ValueError: The architecture is not supported, or the files are damaged.
        OSError: The folder or repository cannot be read; one line that names it.
    """
    name = _folder_or_name(source)
    with _named(source, name):
        config, _, description = _described(source, name)
    return config, description


def _described(source: str, name: str) -> tuple[Any, Any, ModelDescription]:
    """The config, the tokenizer and the description of a model."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(name)
    architecture_of(config, source)  # refused before anything else is read
    tokenizer = load_tokenizer(name)
    description = describe(config, source, chat=bool(getattr(tokenizer, "chat_template", None)))
    return config, tokenizer, dataclasses.replace(description, chat_header_ids=_header_ids(description, tokenizer))


def _header_ids(description: ModelDescription, tokenizer: Any) -> tuple[int, ...]:
    """The tokens of the chat template's header; none where the vocabulary lacks some of it."""
    if tokenizer is None or not description.chat_header:
        return ()
    ids = tokenizer(description.chat_header, add_special_tokens=False, verbose=False)["input_ids"]
    return () if tokenizer.unk_token_id in ids else tuple(ids)


@contextmanager
def _named(source: str, name: str) -> Iterator[None]:
    """Turn what `transformers` and the hub raise into one line that names the model."""
    try:
        with errors_in_one_line(f"model {source}", name):
            yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if str(error).startswith((source, f"model {source}")):
            raise
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"model {source}: {_first_line(error)}") from error


def load_tokenizer(name: str) -> Any:
    """Load a model's tokenizer; None if its folder has none.

    Raises:
        OSError: The tokenizer cannot be read.
    """
    import transformers

    folder = Path(name).expanduser()
    if folder.exists() and not any((folder / f).exists() for f in ("tokenizer.json", "tokenizer.model")):
        return None
    return transformers.AutoTokenizer.from_pretrained(str(folder) if folder.exists() else name)


def _folder_or_name(source: str) -> str:
    """What `transformers` is given for a model."""
    folder = Path(source).expanduser()
    if not folder.exists() and (source.startswith(("/", ".", "~")) or source.count("/") != 1):
        raise FileNotFoundError(f"model folder {source} does not exist (a hub model is written org/name)")
    if folder.exists() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model folder {source} has no config.json")
    return str(folder) if folder.exists() else source


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
