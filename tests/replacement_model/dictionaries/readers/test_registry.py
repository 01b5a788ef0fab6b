"""Another file format is one record, registered; what opens it may be any sparse dictionary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import Case
from safetensors.torch import load_file, save_file

from crosstrace.replacement_model import (
    Activation,
    ActivationKind,
    Encoder,
    FileFormat,
    ReplacementModel,
    Site,
    SparseDictionary,
    TranscoderReader,
    Transcoders,
    open_transcoders,
    register_reader,
)
from crosstrace.tracer import trace

FILE = "all_layers.safetensors"


class OneFileReader(TranscoderReader):
    """All layers of per-layer or cross-layer transcoders in one file, `kind.layer` each."""

    activation = Activation(ActivationKind.JUMP_RELU)

    def __init__(self, folder: Path, name: str, check: bool) -> None:
        self.folder, self.name, self._tensors = folder, name, load_file(folder / FILE)
        self.n_layers = sum(key.startswith("w_enc.") for key in self._tensors)
        self.d_model = self._tensors["w_enc.0"].shape[0]
        self.n_features = [self._tensors[f"w_enc.{layer}"].shape[1] for layer in range(self.n_layers)]
        self.cross_layer = self._tensors["w_dec.0"].shape[1] > 1
        self.reads = Site.MLP_INPUT_NORMED

    def encoder(self, layer: int) -> Encoder:
        return Encoder(*(self._tensors[f"{kind}.{layer}"] for kind in ("w_enc", "b_enc", "threshold")))

    def decoder_rows(self, layer: int, features_n: torch.Tensor) -> torch.Tensor:
        return self.decoder(layer)[features_n]

    def decoder(self, layer: int) -> torch.Tensor:
        return self._tensors[f"w_dec.{layer}"]

    def dtype(self) -> torch.dtype:
        return self._tensors["w_dec.0"].dtype

    def skip(self, layer: int) -> torch.Tensor | None:
        return self._tensors.get(f"skip.{layer}")

    def bias(self, layer: int) -> torch.Tensor:
        return self._tensors[f"b_dec.{layer}"]


class TopKReader(OneFileReader):
    activation = Activation(ActivationKind.TOP_K, k=8)


class ResidualDictionary(SparseDictionary):
    """An autoencoder of the residual stream after layer 2."""

    name, layers, d_model, n_features = "sae", (2,), 8, [16]
    activation, reads, writes = Activation(ActivationKind.RELU), Site.RESIDUAL, Site.RESIDUAL

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def n_written(self, layer: int) -> int:
        return 1

    def encoder(self, layer: int) -> Encoder:
        return Encoder(torch.eye(8, 16), torch.zeros(16), torch.zeros(16))

    def decoder_rows(self, layer: int, features_n: torch.Tensor) -> torch.Tensor:
        return self.decoder(layer)[features_n]

    def decoder(self, layer: int) -> torch.Tensor:
        return torch.eye(16, 8)[:, None]

    def dtype(self) -> torch.dtype:
        return torch.float32

    def bias(self, layer: int) -> torch.Tensor:
        return torch.zeros(8)


ONE_FILE = FileFormat("one file", FILE, lambda path: (path / FILE).is_file(), OneFileReader)


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    register_reader(ONE_FILE)
    register_reader(
        FileFormat(
            "an autoencoder",
            "sae.json",
            lambda path: (path / "sae.json").is_file(),
            lambda path, name, check: ResidualDictionary(path),
        )
    )


def write_one_file(case: Case, folder: Path) -> Path:
    reader, tensors = open_transcoders(case.transcoders), {}
    for layer in reader.layers:
        encoder = reader.encoder(layer)
        tensors |= {f"w_enc.{layer}": encoder.w_enc_df, f"b_enc.{layer}": encoder.b_enc_f}
        tensors |= {f"threshold.{layer}": encoder.threshold_f, f"b_dec.{layer}": reader.bias(layer)}
        tensors[f"w_dec.{layer}"] = reader.decoder(layer)
        if (skip := reader.skip(layer)) is not None:
            tensors[f"skip.{layer}"] = skip
    folder.mkdir()
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, folder / FILE)
    return folder


def test_another_format_gives_the_same_graph(case, tmp_path):
    known = ReplacementModel.from_pretrained(case.model, case.transcoders, "cpu")
    assert known.transcoders.reads is Site.MLP_INPUT_NORMED
    model = ReplacementModel.from_pretrained(case.model, write_one_file(case, tmp_path / "one"), "cpu")
    graph, expected = trace(model, case.input_ids), trace(known, case.input_ids)
    assert torch.equal(graph.active_features, expected.active_features)
    torch.testing.assert_close(graph.adjacency, expected.adjacency, rtol=1e-5, atol=1e-6)


def test_a_folder_of_no_format_names_all_of_them(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        open_transcoders(tmp_path)
    message = str(caught.value)
    for name, files in (
        ("circuit-tracer", "config.yaml"),
        ("Gemma Scope 2, cross-layer", "params_layer_0.safetensors"),
        ("Gemma Scope 2, per layer", "layer_0_…/params.safetensors"),
        ("one file", FILE),
    ):
        assert f"{files} ({name})" in message


def test_a_format_is_registered_once():
    with pytest.raises(ValueError, match="file format one file is registered already"):
        register_reader(ONE_FILE)


def test_a_top_k_of_another_format_is_computed(case, tmp_path):
    reader = TopKReader(write_one_file(case, tmp_path / "one"), "mine", True)
    features = Transcoders(reader, torch.device("cpu")).encode(0, torch.randn(5, reader.d_model) * 10, 1)
    assert torch.bincount(features[0], minlength=5).tolist() == [0, 8, 8, 8, 8]


def test_a_top_k_without_its_k_is_refused(case, tmp_path):
    reader = OneFileReader(write_one_file(case, tmp_path / "one"), "mine", True)
    reader.activation = Activation(ActivationKind.TOP_K)
    with pytest.raises(ValueError, match="mine: activation TopK; a TopK, and only it, has a k"):
        Transcoders(reader, torch.device("cpu"))


def test_other_dictionaries_are_not_taken_for_transcoders(tmp_path):
    (tmp_path / "sae.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a dictionary from output to output, not transcoders"):
        open_transcoders(tmp_path)
