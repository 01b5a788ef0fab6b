"""Loading a base model, its config and its tokenizer from a folder or the hub, as `transformers` reads them."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.architectures.empty_weights import EmptyWeights
from crosstrace.replacement_model.architectures.gguf import dequantised, is_gguf
from crosstrace.replacement_model.architectures.imports import deferred_imports, models_listed_once
from crosstrace.replacement_model.architectures.registry import architecture_of, describe
from crosstrace.replacement_model.architectures.text_part import TextPart, text_part
from crosstrace.replacement_model.architectures.tokenizer_files import read_tokenizer
from crosstrace.replacement_model.architectures.weight_files import WeightFiles, check_whole, not_finite, read_json
from crosstrace.replacement_model.hub import errors_in_one_line


def load_model(
    source: str,
    dtype: torch.dtype | None,
    device: torch.device,
    device_map: str | dict[str, Any] | None = None,
    chat_template: str | None = None,
) -> tuple[nn.Module, Any, ModelDescription]:
    """Load a model and its tokenizer.

    Args:
        source: A folder, a `.gguf` file, or `org/name` on the hub.
        dtype: The dtype of the weights; None: as stored.
        device: Where the model goes, unless `device_map` says.
        device_map: The device of each part, as accelerate takes it.
        chat_template: The tokenizer's chat template (Jinja), in place of its own.

    Returns:
        The module (evaluation mode; eager attention, so that its probabilities can be read), the tokenizer or None if
        the folder has none, and the description.

    Raises:
        ValueError: The architecture is not supported, or the files are damaged.
        OSError: The folder or repository cannot be read; one line that names it.
    """
    name = _folder_or_name(source)
    placement = {}
    if device_map is not None:
        if importlib.util.find_spec("accelerate") is None:
            raise ValueError("a device map needs accelerate, which is not installed; pip install accelerate")
        placement["device_map"] = device_map
    deferring = deferred_imports() if device_map is None else nullcontext()
    with deferring, models_listed_once(), EmptyWeights(), _quiet_transformers(), _named(source, name):
        config, description = _described(source, name)
        files = WeightFiles.in_folder(Path(name)) if Path(name).is_dir() else None
        part = text_part(config, architecture_of(config, source))
        try:
            model, report = part.loader.from_pretrained(
                name,
                config=part.config,
                key_mapping=part.renamed or None,
                dtype=dtype or getattr(config, "dtype", None) or "auto",
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to name them in one line
                **placement,
            )
        finally:
            files = files or WeightFiles.in_folder(_snapshot(name))  # which names a damaged one
        _check_report(report, part, files)
        _check_finite(model, files)
        tokenizer = read_tokenizer(name)
        if chat_template is not None:
            if tokenizer is None:
                raise ValueError("it has no tokenizer that a chat template could be given to")
            tokenizer.chat_template = chat_template
        description = _with_chat_header(config, source, description, tokenizer)
    model = model.eval().requires_grad_(False)
    return model if placement else model.to(device), tokenizer, description


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep progress bars and the load report of `transformers` from the screen."""
    from transformers.utils import logging as transformers_logging

    bars_were_on, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars_were_on:
            transformers_logging.enable_progress_bar()


def _snapshot(name: str) -> Path:
    """The folder of a hub model's files in the cache; a folder without files if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else Path(name)


def _check_report(report: dict[str, Any], part: TextPart, files: WeightFiles) -> None:
    """Refuse a checkpoint with tensors that are missing, of another shape, or not read."""
    if missing := sorted(report["missing_keys"]):  # transformers would go on with random numbers in their place
        place = files.nearest(missing[0])
        expected = f" (expected in {Path(place).name})" if place else ""
        raise ValueError(f"{len(missing)} tensors are missing from its files, the first is {missing[0]}{expected}")
    if mismatched := sorted(report["mismatched_keys"]):
        tensor, stored, expected = mismatched[0][:3]
        place = files.nearest(tensor)
        raise ValueError(
            f"{place + ': ' if place else ''}{tensor} has shape {tuple(stored)}; expected {tuple(expected)} by config.json"
        )
    for tensor in sorted(report["unexpected_keys"]):
        if not part.ignores.search(tensor):
            place = files.nearest(tensor)
            raise ValueError(
                f"{place + ': ' if place else ''}tensor {tensor} is not known in a {part.loader.__name__}; "
                "merge adapters into the weights first, if it belongs to one"
            )


def _check_finite(model: nn.Module, files: WeightFiles) -> None:
    """Refuse weights that hold NaN or infinity."""
    for tensor, weight in model.named_parameters():
        if weight.device.type != "meta" and (what := not_finite(weight)):  # accelerate keeps those on meta elsewhere
            place = files.nearest(tensor)
            raise ValueError(f"{place + ': ' if place else ''}{tensor} holds {what}; the file is damaged")


def load_config(source: str) -> tuple[Any, ModelDescription]:
    """Load the `transformers` config of a model and its description, without the weights.

    Args:
        source: A folder, a `.gguf` file, or `org/name` on the hub.

    Raises:
        ValueError: The architecture is not supported, or the files are damaged.
        OSError: The folder or repository cannot be read; one line that names it.
    """
    name = _folder_or_name(source)
    with _named(source, name):
        config, description = _described(source, name)
        return config, _with_chat_header(config, source, description, load_tokenizer(name))


def _described(source: str, name: str) -> tuple[Any, ModelDescription]:
    """The config and the description of a model, without what depends on its tokenizer."""
    import transformers

    folder = Path(name)
    if folder.is_dir():
        read_json(folder / "config.json")
        check_whole([folder / "generation_config.json"])
    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except StrictDataclassError as error:  # several lines, the last of which says what is wrong
        raise ValueError(f"config.json: {' '.join(str(error).splitlines()[-1].split())}") from error
    architecture_of(config, source)  # refused before anything else is read
    for part in (config, getattr(config, "text_config", None)):
        if quantised := getattr(part, "quantization_config", None):
            method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
            raise ValueError(
                f"its weights are quantised ({getattr(method, 'value', method) or 'quantization_config'}); "
                "only unquantised ones can be traced: use the checkpoint that it was made from"
            )
    return config, describe(config, source)


def _with_chat_header(config: Any, source: str, description: ModelDescription, tokenizer: Any) -> ModelDescription:
    """The description with the header of the tokenizer's chat template, if it has one."""
    if not getattr(tokenizer, "chat_template", None):
        return description
    description = describe(config, source, chat=True)
    return dataclasses.replace(description, chat_header_ids=_header_ids(description, tokenizer))


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
        text = _first_line(error).removeprefix(f"{name}/")  # a file of the folder
        if text.startswith((source, f"model {source}")):
            raise
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"model {source}: {text}") from error


def load_tokenizer(name: str) -> Any:
    """Load a model's tokenizer; None if its folder has none.

    Raises:
        OSError: The tokenizer cannot be read.
        ValueError: One of its files is damaged; it is named.
    """
    return read_tokenizer(_folder_or_name(name) if is_gguf(name) else name)


def _folder_or_name(source: str) -> str:
    """What `transformers` is given for a model; a GGUF file is dequantised first."""
    if is_gguf(source):
        return str(dequantised(source))
    folder = Path(source).expanduser()
    if not folder.exists() and (source.startswith(("/", ".", "~")) or source.count("/") != 1):
        raise FileNotFoundError(f"model folder {source} does not exist (a hub model is written org/name)")
    if folder.exists() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model folder {source} has no config.json")
    return str(folder) if folder.exists() else source


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
