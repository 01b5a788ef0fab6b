"""Fingerprints tell weights apart, and nothing else."""

from __future__ import annotations

from pathlib import Path

import torch
from cases import load_case, rounded_copy
from safetensors.torch import load_file, save_file

from crosstrace.replacement_model import ReplacementModel, open_transcoders
from crosstrace.replacement_model.fingerprints import transcoders_fingerprint, weight_fingerprints


def test_the_same_weights_under_another_name_and_dtype(tmp_path: Path) -> None:
    case = load_case("clt_affine")
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")
    copy = ReplacementModel.from_pretrained(
        case.model, rounded_copy(case, tmp_path / "copy", torch.float32), "cpu", torch.bfloat16
    )
    assert weight_fingerprints(copy) == weight_fingerprints(model)


def test_other_weights() -> None:
    found = set()
    for name in ("clt_affine", "clt_plain_gqa", "skip_transcoder"):
        case = load_case(name)
        model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")
        found |= set(weight_fingerprints(model).values())
    assert len(found) == 6


def test_one_bias_of_one_layer_is_enough(tmp_path: Path) -> None:
    case = load_case("clt_affine")
    before = transcoders_fingerprint(open_transcoders(case.transcoders))
    folder = rounded_copy(case, tmp_path / "copy", torch.float32)
    path = sorted(folder.glob("**/*.safetensors"))[-1]
    tensors = load_file(path)
    tensors["b_enc"][-1] += 1
    save_file(tensors, path)
    assert transcoders_fingerprint(open_transcoders(folder)) != before
