"""Transcoders that miss next to nothing: edges of their errors are as exact as all others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from cases import Case
from reference import LinearModel, relative_error
from safetensors.torch import load_file, save_file

from crosstrace.replacement_model import ReplacementModel, open_transcoders
from crosstrace.tracer import trace


def write_near_perfect(case: Case, folder: Path, missed: float, layers: range | None = None) -> Path:
    """Copy a case's transcoders, changed so that errors are a share of the prompt's MLP outputs.

    One feature per position fires there alone and writes the MLP's output to its own layer. Layers not in `layers` miss
    all of it.
    """
    shutil.copytree(case.transcoders, folder)
    local = ReplacementModel.from_pretrained(case.model, case.transcoders, "cpu").local(case.input_ids)
    outputs_lpd = (local.residuals_lpd[1:] - local.mids_lpd).double()
    generator = torch.Generator().manual_seed(0)
    for layer, path in enumerate(sorted(folder.glob("**/params*.safetensors"))):
        tensors = load_file(path)
        input_pd = (local.layers[layer].mlp_norm[:] * local.mids_lpd[layer]).double()
        noise_pd = torch.randn(input_pd.shape, generator=generator, dtype=torch.float64)
        share = missed if layers is None or layer in layers else 1.0
        noise_pd *= share * outputs_lpd[layer].norm(dim=-1, keepdim=True) / noise_pd.norm(dim=-1, keepdim=True)
        written_pd = outputs_lpd[layer] - noise_pd
        if "affine_skip_connection" in tensors:
            written_pd -= input_pd @ tensors["affine_skip_connection"].double()
        n_positions = len(input_pd)
        for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
            tensors[name].zero_()
        tensors["threshold"].fill_(0.5)
        tensors["w_enc"][:, :n_positions] = torch.linalg.pinv(input_pd)
        decoder = tensors["w_dec"]
        (decoder[:n_positions, layer] if decoder.ndim == 3 else decoder[:n_positions]).copy_(written_pd)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return folder


@pytest.mark.parametrize("missed", [1e-2, 1e-4, 1e-6])
def test_edges_do_not_lose_what_errors_lack(case: Case, tmp_path: Path, missed: float) -> None:
    check_edges(case, write_near_perfect(case, tmp_path / "copy", missed), torch.float32)


def test_one_layer_is_enough(case: Case, tmp_path: Path) -> None:
    check_edges(case, write_near_perfect(case, tmp_path / "copy", 1e-4, layers=range(1, 2)), torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_of_the_model_are_used_as_they_are(case: Case, tmp_path: Path, dtype: torch.dtype) -> None:
    """Rounded transcoders miss more, and still little enough for float64."""
    check_edges(case, write_near_perfect(case, tmp_path / "copy", 1e-3), dtype)


def check_edges(case: Case, folder: Path, dtype: torch.dtype) -> None:
    model = ReplacementModel.from_pretrained(case.model, folder, "cpu", dtype)
    graph = trace(model, case.input_ids, progress=False)
    reference = LinearModel(case.model, open_transcoders(folder), case.input_ids, dtype)
    assert list(map(tuple, graph.active_features.tolist())) == reference.active
    local = model.local(case.input_ids)
    assert relative_error(local.errors_lpd, reference.errors_lpd) < 1e-6
    for layer, errors_pd in enumerate(reference.errors_lpd):
        assert relative_error(local.errors_lpd[layer], errors_pd) < 1e-6
    expected, found = reference.adjacency(graph.logit_tokens.tolist()), graph.adjacency
    for columns in (graph.layout.features, graph.layout.errors, graph.layout.tokens):
        assert relative_error(found[:, columns], expected[:, columns]) < 3e-6
    assert graph.completeness_error() < 1e-5


def test_rows_of_every_place_are_subtracted_alike(case: Case, tmp_path: Path) -> None:
    """Wherever decoder rows are held."""
    folder = write_near_perfect(case, tmp_path / "copy", 1e-4)
    local = ReplacementModel.from_pretrained(case.model, folder, "cpu").local(case.input_ids)
    values_n = local.activations.values.double()
    expected = None
    for place in ("entries", "memory", "mapped", "host"):
        rows = local.transcoders.decoder_rows_of(local.activations, place)
        left_lpd = torch.zeros(local.errors_lpd.shape, dtype=torch.float64)
        rows.subtract(local.activations, values_n, left_lpd)
        expected = left_lpd if expected is None else expected
        assert torch.equal(left_lpd, expected)
        torch.testing.assert_close(left_lpd.float(), -rows.decode(local.activations), rtol=1e-5, atol=1e-6)
