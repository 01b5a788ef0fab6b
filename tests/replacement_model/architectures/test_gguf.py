"""GGUF files of Gemma 3: the same model as its Hugging Face folder, or one line that names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import load_case
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from crosstrace.replacement_model.architectures.gguf import dequantised, dequantised_place
from crosstrace.replacement_model.architectures.loading import load_model
from crosstrace.tracer.commands.app import app

gguf = pytest.importorskip("gguf")

CASE = load_case("clt_affine")
CONFIG = json.loads((CASE.model / "config.json").read_text("utf-8"))
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
}
TOPS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "crosstrace"


def settings() -> dict[str, Any]:
    return {
        "block_count": CONFIG["num_hidden_layers"],
        "context_length": CONFIG["max_position_embeddings"],
        "embedding_length": CONFIG["hidden_size"],
        "feed_forward_length": CONFIG["intermediate_size"],
        "attention.head_count": CONFIG["num_attention_heads"],
        "attention.head_count_kv": CONFIG["num_key_value_heads"],
        "attention.key_length": CONFIG["head_dim"],
        "attention.value_length": CONFIG["head_dim"],
        "attention.layer_norm_rms_epsilon": CONFIG["rms_norm_eps"],
        "attention.sliding_window": CONFIG["sliding_window"],
        "rope.freq_base": 1e6,
    }


def tensors() -> dict[str, Tensor]:
    found = {}
    for path in CASE.model.glob("*.safetensors"):
        for key, value in load_file(path).items():
            stem = key.removesuffix(".weight")
            if stem in TOPS:
                name = f"{TOPS[stem]}.weight"
            elif stem.startswith("model.layers."):
                layer, part = stem.removeprefix("model.layers.").split(".", 1)
                name = f"blk.{layer}.{PARTS[part]}.weight"
            else:
                continue
            found[name] = value.float() + (1 if "norm" in name else 0)
    return found


def write(
    path: Path, values: dict[str, Any], weights: dict[str, Tensor], architecture: str = "gemma3", kind: Any = None
) -> str:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        (writer.add_float32 if isinstance(value, float) else add)(f"{architecture}.{key}", value)
    count = CONFIG["vocab_size"]
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*special, *(f"w{i}" for i in range(len(special), count))])
    writer.add_token_scores([0.0] * count)
    writer.add_token_types([3] * len(special) + [1] * (count - len(special)))
    for name, token in (("bos", 2), ("eos", 1), ("pad", 0), ("unk", 3)):
        getattr(writer, f"add_{name}_token_id")(token)
    for name, value in weights.items():
        data = value.numpy()
        if kind is not None and value.ndim > 1:
            writer.add_tensor(name, gguf.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def logits(source: str) -> Tensor:
    model, _, _ = load_model(source, torch.float32, torch.device("cpu"))
    return model(torch.tensor([CASE.input_ids])).logits[0]


def test_a_float32_file_is_the_same_model(tmp_path, cache):
    values = settings() | {"attention.sliding_window_pattern": pattern()}
    source = write(tmp_path / "m.gguf", values, tensors())
    assert torch.allclose(logits(source), logits(str(CASE.model)), atol=1e-4)
    place = dequantised_place(source)
    assert place.parent == cache
    before = sorted((path.name, path.stat().st_mtime_ns) for path in place.iterdir())
    assert dequantised(source) == place
    assert sorted((path.name, path.stat().st_mtime_ns) for path in place.iterdir()) == before


def pattern() -> int:
    kinds = CONFIG["layer_types"]
    return kinds.index("full_attention") + 1 if "full_attention" in kinds else len(kinds) + 1


def test_quantised_matrices_become_bfloat16(tmp_path):
    weights = tensors()
    source = write(tmp_path / "q.gguf", settings(), weights, kind=gguf.GGMLQuantizationType.Q8_0)
    model, _, _ = load_model(source, None, torch.device("cpu"))
    stored = model.state_dict()["model.layers.0.mlp.up_proj.weight"]
    assert stored.dtype == torch.bfloat16
    wanted = weights["blk.0.ffn_up.weight"]
    assert ((stored.float() - wanted).norm() / wanted.norm()).item() < 0.01
    gain = model.state_dict()["model.layers.1.post_feedforward_layernorm.weight"]
    assert torch.allclose(gain.float(), weights["blk.1.post_ffw_norm.weight"] - 1, atol=1e-2)


def test_another_file_of_the_same_name_is_another_folder(tmp_path):
    first = write(tmp_path / "m.gguf", settings(), tensors())
    place = dequantised(first)
    changed = {name: value * (2 if name.endswith("ffn_up.weight") else 1) for name, value in tensors().items()}
    assert dequantised(write(tmp_path / "m.gguf", settings(), changed)) != place


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"values": {"nonsense": 3}}, "setting gemma3.nonsense is not known"),
        ({"values": {"rope.scaling.type": "yarn"}}, "gemma3.rope.scaling.type is 'yarn'; expected none or linear"),
        ({"values": {"attention.value_length": 7}}, "gemma3.attention.value_length is 7; expected"),
        ({"drop_setting": "block_count"}, "setting gemma3.block_count is missing"),
        ({"drop": "blk.1.ffn_up.weight"}, "tensors are missing, the first is blk.1.ffn_up.weight"),
        ({"add": "blk.0.attn_q.bias"}, "tensor blk.0.attn_q.bias is not one of Gemma 3's"),
        ({"add": "blk.77.ffn_up.weight"}, "tensor blk.77.ffn_up.weight is of a layer that the model does not have"),
        ({"nan": "blk.1.ffn_up.weight"}, "tensor blk.1.ffn_up.weight holds NaN or infinity"),
        ({"architecture": "llama"}, "general.architecture is 'llama'; expected 'gemma3'"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_named(tmp_path, cache, change, said):
    values, weights = settings() | change.get("values", {}), tensors()
    values.pop(change.get("drop_setting"), None)
    weights.pop(change.get("drop"), None)
    if "add" in change:
        weights[change["add"]] = torch.ones(4)
    if "nan" in change:
        weights[change["nan"]][0, 0] = torch.nan
    source = write(tmp_path / "m.gguf", values, weights, change.get("architecture", "gemma3"))
    with pytest.raises(ValueError, match="gguf") as caught:
        load_model(source, None, torch.device("cpu"))
    assert said in str(caught.value)
    assert source in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(cache.iterdir())  # nothing half written stays


def test_damaged_files_are_one_line(tmp_path):
    whole = Path(write(tmp_path / "m.gguf", settings(), tensors())).read_bytes()
    for name, data in {
        "cut": whole[: len(whole) // 2],
        "header": whole[:100],
        "empty": b"",
        "text": b"version https",
    }.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=name) as caught:
            load_model(str(path), None, torch.device("cpu"))
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"model file .*none\.gguf does not exist"):
        load_model(str(tmp_path / "none.gguf"), None, torch.device("cpu"))


def test_the_command_line_says_that_a_file_is_dequantised(tmp_path):
    values = settings() | {"attention.sliding_window_pattern": pattern()}
    source = write(tmp_path / "m.gguf", values, tensors())
    arguments = ["trace", "w5 w6", "--model", source, "--transcoders", str(CASE.transcoders), "--explain"]
    first, second = (CliRunner(env={"COLUMNS": "120"}).invoke(app, arguments) for _ in range(2))
    assert first.exit_code == second.exit_code == 0, first.output
    (line,) = first.stderr.splitlines()
    assert line.startswith(f"note: {source} is dequantised into {dequantised_place(source)}, once")
    assert not second.stderr
