"""The model and the prompt that the options of a verb name."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from crosstrace.tracer.commands.messages import note

if TYPE_CHECKING:
    import torch

    from crosstrace.graphs import AttributionGraph
    from crosstrace.replacement_model import LoadedModel, ReplacementModel
    from crosstrace.tracer.attribution.plan import Plan

_WORDS_NAMED = 5


@dataclass(frozen=True)
class ModelChoice:
    """A model with its transcoders; the embedded demo if neither is named.

    Attributes:
        model: A folder, or a name on the hub.
        transcoders: A folder, or a reference on the hub.
        device: A torch device by name; None for a GPU if there is one.
        dtype: `float32`, `bfloat16` or `float16`; None for the dtype in the files.
        memory_budget: A size such as `8GB`; None for 80 % of what is free.
        device_map: How accelerate spreads the model's layers; None for all on `device`.
        exclude_first: How many first positions carry no features; None for what model and prompt say.
        chat_template: A file of a chat template; None for the tokenizer's own.
    """

    model: str | None
    transcoders: str | None
    device: str | None = None
    dtype: str | None = None
    memory_budget: str | None = None
    device_map: str | None = None
    exclude_first: int | None = None
    chat_template: Path | None = None

    def __post_init__(self) -> None:
        from crosstrace.replacement_model.embedded import embedded_model

        if (self.model is None) != (self.transcoders is None) and embedded_model(self.model) is None:
            raise typer.BadParameter("--model and --transcoders go together; without both, the embedded demo is used")

    def load(self) -> ReplacementModel:
        """Load the model.

        Raises:
            ValueError: The device or dtype cannot be used, or model and transcoders do not fit.
            OSError: Files are missing.
        """
        from crosstrace.replacement_model import ReplacementModel

        dtype = parse_dtype(self.dtype)
        check_device(self.device)
        template = read_chat_template(self.chat_template)
        note_dequantising(self.model)
        return ReplacementModel.from_pretrained(
            self.model or "demo",
            self.transcoders,
            self.device,
            dtype=dtype,
            excluded_first=self.exclude_first,
            memory_budget=self.memory_budget,
            device_map=self.device_map,
            chat_template=template,
        )

    def plan(self, prompt: str | int, max_feature_nodes: int | None, batch_size: int | None) -> Plan:
        """Plan a trace of a prompt without loading the model; see `crosstrace.tracer.plan_trace`."""
        from crosstrace.tracer.attribution.plan import plan_trace

        note_dequantising(self.model)
        return plan_trace(
            self.model or "demo",
            self.transcoders,
            prompt,
            max_feature_nodes,
            batch_size,
            self.device,
            parse_dtype(self.dtype),
            self.memory_budget,
            excluded_first=self.exclude_first,
        )


def read_chat_template(path: Path | None) -> str | None:
    """Return the text of `--chat-template`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is empty or not text.
    """
    if path is None:
        return None
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        template = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    if not template.strip():
        raise ValueError(f"{path}: the chat template is empty")
    return template


def choice_of_graph(
    graph: AttributionGraph, model: str | None, transcoders: str | None, device: str | None, dtype: str | None
) -> ModelChoice:
    """Return the model and transcoders that a graph names, where the options name none.

    Args:
        graph: The graph.
        model: As the user named it; None for the graph's own.
        transcoders: Likewise.
        device: A torch device by name.
        dtype: None for the graph's own: edges hold for the weights as they were used.

    Raises:
        ValueError: The graph's own are not on this machine, and have no name that the hub knows.
    """
    from crosstrace.replacement_model.embedded import embedded_model

    dtype = dtype or graph.settings.get("weights_dtype")
    own = embedded_model(graph.model_name)
    if model is None and own is not None and graph.transcoders_name == own.transcoders_name:
        model = own.option
    if model is not None:
        return ModelChoice(model, transcoders, device, dtype)
    missing = [name for name in (graph.model_name, graph.transcoders_name) if not _can_be_found(name)]
    if missing:
        raise ValueError(
            f"the graph was traced in {graph.model_name} with {graph.transcoders_name}, and {missing[0]} is neither a "
            "folder here nor a name on the hub: say where they are with --model and --transcoders"
        )
    return ModelChoice(graph.model_name, graph.transcoders_name, device, dtype)


def _can_be_found(name: str) -> bool:
    return os.path.exists(name) or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(/[\w.-]+)*(@[\w.-]+)?", name) is not None


def note_dequantising(model: str | None) -> None:
    """Say that a `.gguf` file is being dequantised, which takes a while the first time."""
    from crosstrace.replacement_model.architectures.gguf import dequantised_place, is_gguf

    if model is None or not is_gguf(model):
        return
    try:
        place = dequantised_place(model)
    except OSError:  # said where it is read
        return
    if not place.is_dir():
        note(f"{model} is dequantised into {place}, once; that takes about a minute for 270M parameters")


def check_device(device: str | None) -> None:
    """Check that tensors can be made on a device.

    Raises:
        ValueError: They cannot; one line says why.
    """
    import torch

    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def parse_dtype(dtype: str | None) -> torch.dtype | None:
    """Return the torch dtype that an option names.

    Raises:
        ValueError: Weights cannot be used in that dtype.
    """
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is not None and dtype not in dtypes:
        raise ValueError(f"unknown dtype {dtype!r}: known are {', '.join(dtypes)}")
    return None if dtype is None else dtypes[dtype]


def read_prompt(prompt: str) -> str:
    """Return the text that a verb is about; `-` reads it from standard input, byte for byte.

    Line breaks are kept as they are, the last one too: each is a token, or part of one.

    Raises:
        ValueError: It is empty, the name of a file, or not valid text.
    """
    text = _standard_input() if prompt == "-" else prompt
    if not text.strip():
        raise ValueError("the prompt is empty")
    name = text.strip()
    if "\0" not in name and os.path.splitext(name)[1] and os.path.isfile(name):
        raise ValueError(f"{name} is a file; give the text of a prompt, or pipe it to standard input with -")
    from crosstrace.replacement_model.prompts import check_text

    check_text(text)
    return text


def _standard_input() -> str:
    """Standard input as text, without any change to its line breaks."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as problem:
        byte = problem.object[problem.start]
        raise ValueError(f"standard input is not valid UTF-8: byte {problem.start + 1} is 0x{byte:02X}") from None


def note_prompt(model: LoadedModel, text: str) -> None:
    """Say what is probably not meant in a prompt: words that the model has no token for, a second `<bos>`, and so on."""
    from crosstrace.replacement_model import prompts

    note_unknown_words(model, text)
    size = model.description
    ids = prompts.prompt_ids(text, model.tokenizer, model.name, size.vocab_size, size.max_positions)
    for line in prompts.prompt_notes(text, ids.tolist(), model.tokenizer):
        note(line)


def note_unknown_words(model: LoadedModel, text: str) -> None:
    """Name the words of a prompt that the model has no token for, because it reads them all alike."""
    from crosstrace.replacement_model import prompts
    from crosstrace.replacement_model.embedded import embedded_model

    if words := prompts.unknown_words(text, model.tokenizer):
        more = f" and {len(words) - _WORDS_NAMED} more" if len(words) > _WORDS_NAMED else ""
        demo = "; the demo knows only the words of its sentences, spelled as they are there"
        shown = (
            word + "".join(f" ({close}?)" for close in prompts.close_tokens(word, model.tokenizer, 1))
            for word in words[:_WORDS_NAMED]
        )
        note(
            f"not in the vocabulary, read as unknown: {', '.join(shown)}{more}"
            f"{demo if embedded_model(model.name) else ''}"
        )
