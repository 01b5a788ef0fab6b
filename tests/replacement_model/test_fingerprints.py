"""Fingerprints tell weights apart, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import load_case, rounded_copy, write_circuit_tracer
from safetensors.torch import load_file, save_file

from crosstrace.graphs.fingerprints import same_weights
from crosstrace.replacement_model import ReplacementModel, open_transcoders
from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.fingerprints import transcoders_fingerprint, weight_fingerprints
from crosstrace.replacement_model.memory import peak_resident_bytes


def without_exact(prints: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in prints.items() if name != "exact"}


def test_the_same_weights_under_another_name_and_dtype(tmp_path: Path) -> None:
    case = load_case("clt_affine")
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")
    folder = rounded_copy(case, tmp_path / "copy", torch.float32)
    again = weight_fingerprints(ReplacementModel.from_pretrained(case.model, folder, "cpu"))
    assert again == weight_fingerprints(model)
    narrow = weight_fingerprints(ReplacementModel.from_pretrained(case.model, folder, "cpu", torch.bfloat16))
    assert without_exact(narrow) == without_exact(again)
    assert again["exact"].startswith("float32 model, float32 transcoders: ")
    assert narrow["exact"].startswith("bfloat16 model, bfloat16 transcoders: ")
    assert again["exact"][-16:] != narrow["exact"][-16:]


def test_float16_is_told_apart_but_not_said_to_be_other_weights() -> None:
    case = load_case("clt_plain_gqa")
    one, other = (
        weight_fingerprints(ReplacementModel.from_pretrained(case.model, case.transcoders, "cpu", dtype))
        for dtype in (None, torch.float16)
    )
    assert same_weights("transcoders", one, other)
    assert "model/2" not in other
    assert one["exact"] != other["exact"]


def test_another_file_format_of_the_same_weights(tmp_path: Path) -> None:
    """Samples go by index, not by how tensors lie in a file."""
    for name in ("clt_plain_gqa", "skip_transcoder"):
        case = load_case(name)
        folder = write_circuit_tracer(case, tmp_path / name)
        config = folder / "config.yaml"
        hook = {Site.MLP_INPUT: "hook_resid_mid", Site.MLP_INPUT_NORMED: "mlp.hook_in"}[
            open_transcoders(case.transcoders).reads
        ]
        config.write_text(config.read_text().replace("mlp.hook_in", hook))
        one, other = (
            weight_fingerprints(ReplacementModel.from_pretrained(case.model, place, "cpu"))
            for place in (case.transcoders, folder)
        )
        assert one == other


@pytest.mark.parametrize("name", ["w_enc", "w_dec", "b_enc", "b_dec", "threshold", "affine_skip_connection"])
def test_every_kind_of_tensor_of_transcoders_is_seen(tmp_path: Path, name: str) -> None:
    """Trained further, so that all values moved."""
    case = load_case("clt_affine")
    folder = rounded_copy(case, tmp_path / "copy", torch.float32)
    path = sorted(folder.glob("**/*.safetensors"))[1]
    tensors = load_file(path)
    tensors[name] *= 1.03
    save_file(tensors, path)
    before, after = (
        weight_fingerprints(ReplacementModel.from_pretrained(case.model, place, "cpu"))
        for place in (case.transcoders, folder)
    )
    assert before["transcoders/2"] != after["transcoders/2"]
    assert before["exact"] != after["exact"]
    assert before["model/2"] == after["model/2"]
    assert same_weights("transcoders", before, after) is False


@pytest.mark.parametrize(
    "part", ["embed_tokens", "q_proj", "k_norm", "o_proj", "gate_proj", "down_proj", "post_feedforward_layernorm"]
)
def test_every_kind_of_weight_of_a_model_is_seen(part: str) -> None:
    case = load_case("clt_affine")
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, "cpu")
    before = weight_fingerprints(model)
    changed = [weight for name, weight in model.model.named_parameters() if part in name][-1]
    changed.mul_(1.03)
    after = weight_fingerprints(model)
    assert before["model/2"] != after["model/2"]
    assert before["exact"] != after["exact"]
    assert before["transcoders/2"] == after["transcoders/2"]


def test_large_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder of 8 GB that exists in name alone: a sparse file."""
    case = load_case("clt_affine")
    reader = open_transcoders(case.transcoders)
    n_features, n_written = 500_000, reader.n_written(0)
    huge = torch.from_file(
        str(tmp_path / "huge"), shared=True, size=n_features * n_written * reader.d_model, dtype=torch.float32
    )
    monkeypatch.setattr(type(reader), "decoder", lambda self, layer: huge.view(n_features, n_written, reader.d_model))
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, "cpu")
    before = peak_resident_bytes()
    weight_fingerprints(model)
    assert peak_resident_bytes() - before < 50e6


def test_other_weights() -> None:
    found = set()
    for name in ("clt_affine", "clt_plain_gqa", "skip_transcoder"):
        case = load_case(name)
        model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")
        found |= set(weight_fingerprints(model).values())
    assert len(found) == 15


def test_one_bias_of_one_layer_is_enough(tmp_path: Path) -> None:
    case = load_case("clt_affine")
    before = transcoders_fingerprint(open_transcoders(case.transcoders))
    folder = rounded_copy(case, tmp_path / "copy", torch.float32)
    path = sorted(folder.glob("**/*.safetensors"))[-1]
    tensors = load_file(path)
    tensors["b_enc"][-1] += 1
    save_file(tensors, path)
    assert transcoders_fingerprint(open_transcoders(folder)) != before
