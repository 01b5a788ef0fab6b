"""The dry run: right sizes, from headers alone, however large the files are."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
import torch
import transformers
from cases import load_case
from typer.testing import CliRunner

from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.memory import resident_bytes
from crosstrace.tracer import plan_trace, trace
from crosstrace.tracer.attribution.batches import automatic_batch_size, largest_batch, ranked_counts
from crosstrace.tracer.commands.app import app


def write_headers(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """A safetensors file of the right size whose data is a hole: it takes no room on the disk."""
    header, end = {}, 0
    for name, (kind, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * {"F32": 4, "BF16": 2}[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, Path]:
    """Gemma 3 27b's config and per-layer transcoders of 262k features in Gemma Scope 2's layout: 350 GB of holes."""
    layers, d_model, features = 62, 5376, 262144
    text = transformers.Gemma3TextConfig(
        vocab_size=262208,
        hidden_size=d_model,
        intermediate_size=21504,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=16,
        head_dim=128,
        query_pre_attn_scalar=168,
    )
    config = transformers.Gemma3Config(text_config=text, architectures=["Gemma3ForConditionalGeneration"])
    config.save_pretrained(tmp_path / "model")
    for layer in range(layers):
        folder = tmp_path / "transcoder_all" / f"layer_{layer}_width_262k_l0_medium"
        folder.mkdir(parents=True)
        site = f"model.layers.{layer}"
        hooks = {
            "hf_hook_point_in": f"{site}.pre_feedforward_layernorm.output",
            "hf_hook_point_out": f"{site}.post_feedforward_layernorm.output",
        }
        (folder / "config.json").write_text(json.dumps(hooks | {"architecture": "jump_relu", "l0": 60}))
        vectors = {"b_enc": ("F32", (features,)), "threshold": ("F32", (features,)), "b_dec": ("F32", (d_model,))}
        matrices = {"w_enc": ("BF16", (d_model, features)), "w_dec": ("BF16", (features, d_model))}
        write_headers(folder / "params.safetensors", vectors | matrices)
    return tmp_path / "model", tmp_path / "transcoder_all"


def test_27b_from_config_and_headers(large):
    plan = plan_trace(*large, prompt=1000, device="cpu", memory_budget="60GB")
    assert (plan.description.n_layers, plan.description.n_kv_heads) == (62, 16)
    assert plan.n_active == 62 * 60 * 999
    assert plan.active_source.startswith("l0")
    assert plan.n_rows == 8192
    parts = {part.name: part for part in plan.parts}
    assert parts["model weights"].n_bytes == pytest.approx(27.0e9 * 2, rel=0.05)
    assert "one encoder at a time" in parts  # 175 GB of encoders do not fit in a quarter of the budget
    assert parts["one encoder at a time"].n_bytes == pytest.approx(5376 * 262144 * 2, rel=0.01)
    rows = parts["decoder rows of active features"]
    assert rows.n_bytes < plan.n_active * 5376 * 2
    assert rows.place == "mapped files"
    assert 1 <= plan.batch_size <= 8


def test_plan_is_what_the_trace_then_does():
    case = load_case("clt_affine")
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu", memory_budget="1GB")
    local = model.local(case.input_ids)
    plan = plan_trace(case.model, case.transcoders, len(case.input_ids), device="cpu", memory_budget="1GB")
    assert plan.transcoders.keeps_encoders == model.transcoders.keeps_encoders
    assert plan.transcoders.keeps_decoders == model.transcoders.keeps_decoders
    assert plan.batch_size == automatic_batch_size(local)
    parts = {part.name: part for part in plan.parts}
    assert parts["decoders, whole"].n_bytes == local.active_rows.nbytes
    assert parts["attention patterns"].n_bytes >= sum(layer.attention.nbytes for layer in local.layers)
    assert plan.n_active == pytest.approx(len(local.activations), rel=3)


@pytest.mark.parametrize("name", ["clt_affine", "clt_plain_gqa"])
def test_skip_connections_are_planned_as_the_trace_holds_them(name):
    case = load_case(name)
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")
    skips = [model.transcoders.skip(layer) for layer in range(model.description.n_layers)]
    size, d_model = model.description, model.description.d_model
    plan = plan_trace(case.model, case.transcoders, len(case.input_ids), device="cpu")
    parts = {part.name: part.n_bytes for part in plan.parts}
    assert parts.get("skip connections", 0) == sum(skip.nbytes for skip in skips if skip is not None)
    assert ("skip connections" in parts) == (name == "clt_affine")
    heads = (size.n_heads + size.n_kv_heads) * size.head_dim
    with_skip = d_model if name == "clt_affine" else 0
    assert parts["projections in float32"] == 4 * size.n_layers * d_model * (heads + with_skip)


def test_skip_connections_count_where_encoders_are_kept():
    case = load_case("clt_affine")
    used = plan_trace(case.model, case.transcoders, 5, device="cpu").transcoders
    both = used.encoder_bytes() + used.skip_bytes()
    assert plan_trace(case.model, case.transcoders, 5, device="cpu", memory_budget=4 * both).transcoders.keeps_encoders
    tight = plan_trace(case.model, case.transcoders, 5, device="cpu", memory_budget=4 * both - 4)
    assert not tight.transcoders.keeps_encoders
    assert "one encoder at a time" in {part.name for part in tight.parts}


def test_the_process_and_the_peak_are_counted():
    case = load_case("clt_affine")
    before = resident_bytes()
    plan = plan_trace(case.model, case.transcoders, 5, device="cpu")
    (process,) = [part for part in plan.parts if part.name.startswith("the process")]
    assert process.phase == "throughout"
    assert process.n_bytes == pytest.approx(max(before, resident_bytes()), rel=0.2)
    sums = {
        phase: sum(p.n_bytes for p in plan.parts if p.phase == phase) for phase in ("trace", "pass", "rows", "graph")
    }
    always = sum(part.n_bytes for part in plan.parts if part.phase == "throughout")
    assert plan.peak_bytes == always + max(sums["trace"] + max(sums["pass"], sums["rows"]), sums["graph"])


def test_the_largest_batch_is_the_one_that_the_trace_computes():
    case = load_case("clt_affine")
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")
    n_active = len(trace(model, case.input_ids, progress=False).active_features)
    assert largest_batch(n_active, n_active, 7) == 7
    assert largest_batch(5, n_active, 64) == max(ranked_counts(5))
    assert largest_batch(0, n_active, 64) == 1


def test_how_many_are_active_can_be_said():
    case = load_case("clt_affine")
    plan = plan_trace(case.model, case.transcoders, 11, device="cpu", active_per_layer=2.5)
    assert plan.n_active == 4 * 10 * 2.5
    assert plan.active_source == "as given"


def test_command_line_prints_the_table_and_traces_nothing(tmp_path):
    case = load_case("clt_affine")
    arguments = ["trace", "w5 w66 w55", "--model", str(case.model), "--transcoders", str(case.transcoders)]
    arguments += ["--device", "cpu", "--memory-budget", "8GB", "--explain", "-o", str(tmp_path / "g.json")]
    result = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"}).invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for text in (
        "4 layers",
        "4 tokens",
        "memory to plan with",
        "8.0 GB",
        "model weights",
        "skip connections",
        "decoders, whole",
        "batch of",
        "the process",
        "peak",
    ):
        assert text in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory-budget", "eight"], "memory budget 'eight' is not a size; write it as 8GB"),
        (["--model", "/no/where"], "/no/where"),
        (["--transcoders", str(load_case("clt_plain_gqa").transcoders)], "do not fit"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_line(options, message):
    case = load_case("clt_affine")
    arguments = ["trace", "w5", "--model", str(case.model), "--transcoders", str(case.transcoders), "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, *options, "--explain"])
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_prompt_that_is_too_long_is_refused_as_by_the_trace():
    case = load_case("clt_affine")
    longest = ReplacementModel.from_pretrained(case.model, case.transcoders, "cpu").description.max_positions
    assert plan_trace(case.model, case.transcoders, longest, device="cpu").n_positions == longest
    with pytest.raises(ValueError, match=f"the prompt has {longest + 1:,} tokens; .* takes at most {longest:,}"):
        plan_trace(case.model, case.transcoders, longest + 1, device="cpu")


def test_a_usual_number_is_said_to_be_one(tmp_path):
    case = load_case("clt_plain_gqa")
    from cases import rounded_copy

    folder = rounded_copy(case, tmp_path / "clt" / "width_1k", torch.float32)
    config = folder / "config.json"
    content = json.loads(config.read_text())
    content.pop("l0", None)
    config.write_text(json.dumps(content))
    assert "no config says" in plan_trace(case.model, folder, 10, device="cpu").active_source
