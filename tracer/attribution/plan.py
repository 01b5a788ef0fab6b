"""The plan of a trace (`crosstrace trace --explain`): what it will take, from configs and file headers alone.

No weights are loaded. The numbers follow from the shapes, from how many features are expected to be active, and from the
same rules that place things when the trace runs. What the process itself holds (interpreter, libraries, tokenizer) is
measured in the process that plans, once it has imported what a trace imports.

Memory is counted as the operating system does: pages of mapped weight files belong to the process once they are touched.

Letters: L layers, P positions, F features of a layer, D d_model, J layers a feature writes to, N active features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.architectures.float64 import WIDENED
from crosstrace.replacement_model.dictionaries.readers import download_bytes, open_transcoders
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.embedded import embedded_model
from crosstrace.replacement_model.hub import missing_bytes
from crosstrace.replacement_model.local.adjoint import row_bytes
from crosstrace.replacement_model.local.folding import folded_bytes, keeps_folded
from crosstrace.replacement_model.local.frozen import BLOCK_KEYS, keeps_attention_on_host
from crosstrace.replacement_model.memory import resident_bytes, usable_bytes
from crosstrace.replacement_model.prompts import text_ids
from crosstrace.tracer import defaults
from crosstrace.tracer.attribution.batches import batch_size_for, largest_batch
from crosstrace.tracer.attribution.row_store import bytes_to_add, rows_in_memory

# Where no config says how many features fire: about what Gemma Scope 2's medium ones do.
_ACTIVE_A_LAYER_AND_TOKEN = 100.0
# Pruning at the default thresholds: an edge (8 bytes), its mask, and for the half of the edges that lies between kept
# nodes a copy, its score, and the sorted and cumulated scores (8 bytes each).
_PRUNING_BYTES_AN_EDGE = 25

Phase = Literal["throughout", "trace", "pass", "rows", "graph"]
"""When a part is held: from start to end; while there is a local replacement model; while the prompt's pass is repeated in
float64, which only prompts with small errors need; while rows are computed; or once the graph is put together."""


@dataclass(frozen=True)
class Part:
    """One thing that takes memory.

    Attributes:
        name: What it is.
        n_bytes: Its size.
        place: Where it will be: a device such as `cpu`, `host` memory beside a GPU, or files.
        phase: When it is held.
    """

    name: str
    n_bytes: int
    place: str
    phase: Phase

    @property
    def in_files(self) -> bool:
        """Whether it stays in files, where the system can take its pages back at any time."""
        return "file" in self.place


@dataclass(frozen=True)
class Plan:
    """What a trace will take.

    Attributes:
        description: The model.
        transcoders: The transcoders, none of whose weights are loaded.
        n_positions: P, the length of the prompt.
        active_per_layer: Features expected to fire at a layer and token.
        active_source: Where that number comes from.
        n_active: N, expected.
        n_rows: Features that get a row.
        batch_size: Rows computed at a time.
        budget: Bytes to plan with.
        parts: Memory by part.
        download_bytes: Bytes of files on the hub that are not in its cache yet.
    """

    description: ModelDescription
    transcoders: Transcoders
    n_positions: int
    active_per_layer: float
    active_source: str
    n_active: int
    n_rows: int
    batch_size: int
    budget: int
    parts: list[Part]
    download_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """The most that will be held at once, in bytes, without what stays in files."""
        held = dict.fromkeys(get_args(Phase), 0)
        for part in self.parts:
            if not part.in_files:
                held[part.phase] += part.n_bytes
        return held["throughout"] + max(held["trace"] + max(held["pass"], held["rows"]), held["graph"])


def plan_trace(
    model: str | Path,
    transcoders: str | Path | None,
    prompt: str | int,
    max_feature_nodes: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    memory_budget: int | str | None = None,
    active_per_layer: float | None = None,
    excluded_first: int | None = None,
) -> Plan:
    """Plan a trace without loading weights; of files on the hub only headers are fetched.

    Args:
        model: A folder, `org/name` on the hub, or `demo` or `demo-chat`, the embedded ones.
        transcoders: A folder, or `org/repo/sub/folder[@revision]` on the hub; None: an embedded model's own.
        prompt: The text, counted with the model's tokenizer, or a number of tokens.
        max_feature_nodes: As `crosstrace.tracer.trace` takes it.
        batch_size: As `crosstrace.tracer.trace` takes it.
        device: A torch device; None for a GPU if there is one.
        dtype: The dtype of the weights; None: as stored.
        memory_budget: Bytes, or text such as `"8GB"`; None for 80 % of what is free.
        active_per_layer: Features that fire at a layer and token; None for what the transcoders' config says (`l0`). On
            a real prompt the number may well be half or twice as large.
        excluded_first: How many first positions carry no features; None: as the architecture and the prompt say.

    Raises:
        ValueError: Files are damaged, model and transcoders do not fit, or the prompt is too long.
        OSError: Files are missing.

    Example:
        >>> plan = plan_trace(demo.MODEL_DIR, demo.TRANSCODERS_DIR, "The capital of the state containing Dallas is")
        >>> print(format_bytes(plan.peak_bytes))
        486 MB
    """
    from crosstrace.replacement_model.architectures.loading import load_config, load_tokenizer

    if (own := embedded_model(model)) is not None:
        model, transcoders = own.folder, transcoders or own.transcoders
    if transcoders is None:
        raise ValueError(f"no transcoders are named for model {model}; only embedded models have their own")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    used = Transcoders(open_transcoders(transcoders, check=False), place, dtype, memory_budget)
    config, description = load_config(str(model))
    used.check_fits(description, str(model))
    tokenizer = load_tokenizer(str(model))  # kept until the process is measured: a trace holds one too
    if excluded_first is not None:
        description = description.excluding(excluded_first)
    if isinstance(prompt, int):
        n_positions = prompt
    else:
        if tokenizer is None:
            raise ValueError(f"model {model} has no tokenizer, so the tokens of a text cannot be counted")
        ids = text_ids(prompt, tokenizer)
        n_positions, description = len(ids), description.for_prompt(ids)
    if n_positions > description.max_positions:
        raise ValueError(
            f"the prompt has {n_positions:,} tokens; model {model} takes at most {description.max_positions:,}"
        )
    active, source = _expected_active(active_per_layer, used.reader.l0)
    counted = max(0, n_positions - description.excluded_first)
    per_layer = [min(active, count) * counted for count in used.reader.n_features]
    n_active = round(sum(per_layer))
    n_rows = min(n_active, defaults.MAX_FEATURE_NODES if max_feature_nodes is None else max_feature_nodes)
    budget = used.memory_budget or usable_bytes(place)
    one_row = row_bytes(description, n_positions, n_active)
    rows_at_a_time = batch_size or batch_size_for(n_positions, one_row, budget, place.type)
    prompt_parts = [*_weight_parts(used, per_layer), *_prompt_parts(description, n_positions, place, budget)]
    parts = [
        Part("the process: libraries, tokenizer", _process_bytes(config, str(model)), "host", "throughout"),
        Part("model weights", _model_bytes(str(model), config, dtype), place.type, "throughout"),
        *prompt_parts,
        *_repeated_pass(prompt_parts, config, n_positions, place),
        *_row_parts(description, used, n_positions, n_active, n_rows, rows_at_a_time, budget),
    ]
    download = _download_bytes(str(model)) + download_bytes(transcoders)
    return Plan(
        description, used, n_positions, active, source, n_active, n_rows, rows_at_a_time, budget, parts, download
    )


def _expected_active(given: float | None, l0: float | None) -> tuple[float, str]:
    """Return how many features fire at a layer and token, and where the number comes from."""
    if given is not None:
        return given, "as given"
    if l0 is not None:
        return l0, "l0 of the transcoders' config"
    return _ACTIVE_A_LAYER_AND_TOKEN, "a usual number; no config says"


def _process_bytes(config: Any, model: str) -> int:
    """Import everything that a trace of this model imports, and return what the process then holds."""
    import transformers

    import crosstrace.tracer.attribution.tracing  # noqa: F401 (imported to be counted)
    from crosstrace.replacement_model.architectures.registry import architecture_of

    getattr(transformers, architecture_of(config, model), None)  # loads its modelling code
    return resident_bytes()


def _weight_parts(used: Transcoders, per_layer: list[float]) -> list[Part]:
    """Encoders, skip connections, and the decoder rows of active features."""
    device, reader = used.device.type, used.reader
    encoders, skips = used.encoder_bytes(), used.skip_bytes()
    if used.keeps_encoders:
        parts = [Part("encoders", encoders, f"{device}, once used", "throughout")]
        parts += [Part("skip connections", skips, f"{device}, once used", "throughout")] if skips else []
    else:
        largest = max((encoders + skips) // used.n_layers, 1)
        parts = [Part("one encoder at a time", largest, device, "trace")]
    if used.keeps_decoders:
        return [*parts, Part("decoders, whole", used.decoder_bytes(), f"{device}, once used", "throughout")]
    # A feature fires at several positions; this many of the F features are expected among the active ones.
    distinct = [
        count * -math.expm1(-active / max(count, 1)) for count, active in zip(reader.n_features, per_layer, strict=True)
    ]
    place, size = used.rows_place(distinct, per_layer)
    described = {"memory": f"{device}, read once", "entries": f"{device}, read once, in float32"}
    described |= {"mapped": "mapped files", "host": "host"}
    return [*parts, Part("decoder rows of active features", size, described[place], "trace")]


def _prompt_parts(description: ModelDescription, n_positions: int, device: torch.device, budget: int) -> list[Part]:
    """What the forward pass leaves behind."""
    layers = description.n_layers
    attention = sum(
        4
        * description.n_heads
        * n_positions
        * min(n_positions, (description.window(layer) or n_positions) + BLOCK_KEYS)
        for layer in range(layers)
    )
    on_host = keeps_attention_on_host(description, n_positions, torch.device(device), budget)
    # r, m, errors, constants, and outputs while errors are made from them
    residuals = 4 * 5 * layers * n_positions * description.d_model
    return [
        Part("residuals, errors and the like", residuals, device.type, "trace"),
        Part("attention patterns", attention, "host" if on_host else device.type, "trace"),
    ]


def _repeated_pass(prompt_parts: list[Part], config: Any, n_positions: int, device: torch.device) -> list[Part]:
    """A second pass in float64, where transcoders leave so little that rounding would show; the first one's record is
    held until it is done."""
    if device.type == "mps":  # which has no float64
        return []
    second = sum(part.n_bytes for part in prompt_parts if part.phase == "trace" and not part.in_files)
    text = getattr(config, "text_config", config)
    errors = 8 * text.num_hidden_layers * n_positions * text.hidden_size
    widest = text.hidden_size * max(text.intermediate_size, text.num_attention_heads * text.head_dim)
    widened = 8 * min(WIDENED, widest)
    return [Part("pass in float64, where errors are small", second + errors + widened, device.type, "pass")]


def _row_parts(
    description: ModelDescription,
    used: Transcoders,
    n_positions: int,
    n_active: int,
    n_rows: int,
    batch_size: int,
    budget: int,
) -> list[Part]:
    """What computing rows takes, and the graph that is made of them."""
    layers, device = description.n_layers, used.device.type
    with_skip = used.skip_bytes() > 0
    folded = folded_bytes(description, with_skip)
    kept = keeps_folded(description, with_skip, budget)
    at_once = largest_batch(n_rows, n_active, batch_size)
    n_sources = n_active + layers * n_positions + n_positions
    batch = at_once * (row_bytes(description, n_positions, n_active) + bytes_to_add(n_sources))
    # A row has about half of the layers and half of the positions below it; an edge takes 8 bytes.
    rows = int(n_rows * (n_active / 4 + layers * n_positions / 4 + n_positions / 2) * 8)
    edges = int(n_rows * (n_rows / 4 + layers * n_positions / 4 + n_positions / 2))
    in_memory = rows <= rows_in_memory(used.memory_budget, device)
    return [
        Part("projections in float32", folded if kept else folded // layers, device, "rows"),
        Part(f"a batch of {at_once:,} rows", batch, device, "rows"),
        Part("computed rows", rows, "host" if in_memory else "a temporary file", "rows"),
        Part("edges of the graph, while it is pruned", edges * _PRUNING_BYTES_AN_EDGE, "host", "graph"),
    ]


def _download_bytes(model: str) -> int:
    """Return what loading a model would download, in bytes."""
    if Path(model).expanduser().exists():
        return 0
    return missing_bytes(model, patterns=["*.safetensors", "*.json"])


def _model_bytes(model: str, config: Any, dtype: torch.dtype | None) -> int:
    """Return the size of the weights: of their files where they are there and used as stored, else from the config.

    Files of a checkpoint with a vision tower hold what is never loaded.
    """
    files = list(Path(model).expanduser().glob("*.safetensors"))
    text = getattr(config, "text_config", config)
    if files and dtype is None and text is config:
        return sum(file.stat().st_size for file in files)
    heads = (2 * text.num_attention_heads + 2 * text.num_key_value_heads) * text.head_dim
    layer = text.hidden_size * (heads + 3 * text.intermediate_size + 4) + 2 * text.head_dim
    count = text.vocab_size * text.hidden_size + text.num_hidden_layers * layer + text.hidden_size
    stored = dtype or getattr(text, "dtype", None) or torch.bfloat16
    return count * (stored.itemsize if isinstance(stored, torch.dtype) else 2)
