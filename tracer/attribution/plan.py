"""``crosstrace trace --explain``: what a trace will take, from configs and file headers alone.

Nothing is loaded: the numbers follow from the shapes, from how many features are expected to be active, and from the same
rules that place things when the trace is run.

Letters: L layers, P positions, F features of a layer, D d_model, J layers a feature writes to, N active features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.dictionaries.readers import download_bytes, open_transcoders
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.hub import missing_bytes
from crosstrace.replacement_model.local.adjoint import folded_bytes, row_bytes
from crosstrace.replacement_model.memory import usable_bytes
from crosstrace.tracer import defaults
from crosstrace.tracer.attribution.batches import batch_size_for

if TYPE_CHECKING:
    pass

# Where no config says how many features fire: about what Gemma Scope 2's medium ones do.
_ACTIVE_A_LAYER_AND_TOKEN = 100.0


@dataclass(frozen=True)
class Part:
    """One thing that takes memory, and where it will be."""

    name: str
    n_bytes: int
    place: str


@dataclass(frozen=True)
class Plan:
    """What a trace will take.

    Attributes:
        active_per_layer: features expected to fire at a layer and token; ``active_source`` says who says so.
        n_active: N, expected. n_rows: features that get a row. batch_size: rows at a time.
        budget: bytes planned with. parts: memory by part.
        download_bytes: of files on the hub that are not in its cache yet.
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
    def device_bytes(self) -> int:
        """What will be held at once, but for what stays in files."""
        return sum(part.n_bytes for part in self.parts if "file" not in part.place)


def plan_trace(
    model: str | Path,
    transcoders: str | Path,
    prompt: str | int,
    max_feature_nodes: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    memory_budget: int | str | None = None,
) -> Plan:
    """Plan a trace without loading weights; of those on the hub only headers are fetched.

    Args:
        prompt: the text, counted with the model's tokenizer, or a number of tokens.

    Raises:
        ValueError, OSError: as when the trace is run: missing or damaged files, model and transcoders that do not fit.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    used = Transcoders(open_transcoders(transcoders, check=False), place, dtype, memory_budget)
    description, text_config = _describe(str(model))
    used.check_fits(description, str(model))
    n_positions = prompt if isinstance(prompt, int) else _count_tokens(str(model), prompt)
    if n_positions > description.max_positions:
        raise ValueError(
            f"the prompt has {n_positions:,} tokens; model {model} takes at most {description.max_positions:,}"
        )
    l0 = used.reader.l0
    active = _ACTIVE_A_LAYER_AND_TOKEN if l0 is None else l0
    counted = max(0, n_positions - description.excluded_first)
    per_layer = [min(active, count) * counted for count in used.reader.n_features]
    n_active = round(sum(per_layer))
    n_rows = min(n_active, defaults.MAX_FEATURE_NODES if max_feature_nodes is None else max_feature_nodes)
    budget = used.memory_budget or usable_bytes(place)
    one_row = row_bytes(description, n_positions, n_active)
    rows_at_a_time = batch_size or batch_size_for(n_positions, one_row, budget, place.type)
    parts = _parts(str(model), text_config, description, used, per_layer, n_positions, n_rows, dtype, budget)
    parts.append(Part(f"a batch of {rows_at_a_time:,} rows", rows_at_a_time * one_row, place.type))
    source = "a usual number; no config says" if l0 is None else "l0 of the transcoders' config"
    download = _download_bytes(str(model)) + download_bytes(transcoders)
    return Plan(
        description, used, n_positions, active, source, n_active, n_rows, rows_at_a_time, budget, parts, download
    )


def _download_bytes(model: str) -> int:
    """What loading a model would download."""
    if Path(model).expanduser().exists():
        return 0
    return missing_bytes(model, patterns=["*.safetensors", "*.json"])


def _parts(
    model: str,
    config: Any,
    description: ModelDescription,
    used: Transcoders,
    per_layer: list[float],
    n_positions: int,
    n_rows: int,
    dtype: torch.dtype | None,
    budget: int,
) -> list[Part]:
    device, reader = used.device.type, used.reader
    layers, d_model = description.n_layers, description.d_model
    # A feature fires at several positions: of F features, so many are expected among the active ones.
    distinct = [
        count * -math.expm1(-active / max(count, 1)) for count, active in zip(reader.n_features, per_layer, strict=True)
    ]
    place, row_size = used.rows_place(distinct, per_layer)
    described = {"memory": f"{device}, read once", "entries": f"{device}, read once, in float32"}
    described |= {"mapped": "mapped files", "host": "host"}
    decoders = Part("decoder rows of active features", row_size, described[place])
    if used.keeps_decoders:
        decoders = Part("decoders, whole", used.decoder_bytes(), f"{device}, once used")
    encoders = (
        Part("encoders", used.encoder_bytes(), f"{device}, once used")
        if used.keeps_encoders
        else Part("one encoder at a time", max(used.encoder_bytes() // layers, 1), device)
    )
    folded = folded_bytes(description, False)
    kept = folded <= budget // 8
    attention = sum(
        4 * description.n_heads * n_positions * min(n_positions, (description.window(layer) or n_positions) + 256)
        for layer in range(layers)
    )
    on_host = device != "cpu" and 4 * layers * description.n_heads * n_positions**2 > budget // 4
    # A row has about half of the layers and half of the positions below it; an edge takes 8 bytes.
    edges = int(n_rows * (sum(per_layer) / 4 + layers * n_positions / 4 + n_positions) * 8)
    return [
        Part("model weights", _model_bytes(model, config, dtype), device),
        encoders,
        decoders,
        Part("residuals, errors and the like", 4 * 5 * layers * n_positions * d_model, device),
        Part("attention patterns", attention, "host" if on_host else device),
        Part("projections in float32", folded if kept else folded // layers, device),
        Part("computed rows", edges, "host" if edges <= defaults.ROWS_IN_MEMORY else "a file past 4 GB"),
    ]


def _describe(model: str) -> tuple[ModelDescription, Any]:
    from crosstrace.replacement_model.architectures.loading import load_config

    config, description = load_config(model)
    return description, getattr(config, "text_config", config)


def _count_tokens(model: str, prompt: str) -> int:
    from crosstrace.replacement_model.architectures.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    if tokenizer is None:
        raise ValueError(f"model {model} has no tokenizer; its prompts cannot be counted")
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    return len(ids) + (tokenizer.bos_token_id is not None and ids[:1] != [tokenizer.bos_token_id])


def _model_bytes(model: str, config: Any, dtype: torch.dtype | None) -> int:
    """From the files where they are there and used as stored, else from the config."""
    files = list(Path(model).expanduser().glob("*.safetensors"))
    if files and dtype is None:
        return sum(file.stat().st_size for file in files)
    heads = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    layer = config.hidden_size * (heads + 3 * config.intermediate_size + 4) + 2 * config.head_dim
    count = config.vocab_size * config.hidden_size + config.num_hidden_layers * layer + config.hidden_size
    stored = dtype or getattr(config, "dtype", None) or torch.bfloat16
    return count * (stored.itemsize if isinstance(stored, torch.dtype) else 2)
