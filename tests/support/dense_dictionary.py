"""Training written densely, with autograd and float64: what the trainer's sparse steps are compared with.

Letters: L layers, B tokens, F features, D d_model, J layers a feature writes to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crosstrace.replacement_model.training.core import Trainer
from crosstrace.replacement_model.training.parameters import DictionaryShape
from crosstrace.replacement_model.training.settings import TrainingSettings, load_recipe

KINDS = ("transcoders", "skip_transcoders", "clt", "skip_clt", "sae")


def small_settings(kind: str, **changes: Any) -> TrainingSettings:
    """A small recipe for one of `KINDS`."""
    values = {
        "kind": kind.removeprefix("skip_"),
        "skip": kind.startswith("skip_"),
        "site": "attn_out",
        "features": 12,
        "l0": 3.0,
        "l0_start": 4.0,
        "tokens": 1000,
        "batch_tokens": 16,
        "chunk_positions": 1,
        "end_to_end_tokens": 0,
        "seed": 3,
    }
    return load_recipe("laptop", **{**values, **changes})


def small_shape(settings: TrainingSettings, n_layers: int = 3) -> DictionaryShape:
    """The shape that goes with it; SAEs are wider than the rest."""
    layers = tuple(range(n_layers)) if settings.kind != "sae" else (1, 2, 5)
    width = 7 if settings.kind == "sae" else 5
    return DictionaryShape(settings.kind, settings.site, layers, settings.features, width, width)


def small_data(shape: DictionaryShape, n_tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Raw inputs and outputs that depend on them, off centre, with one large dimension. An SAE's outputs are its inputs."""
    generator = torch.Generator().manual_seed(seed)
    x_lnd = torch.randn(shape.n_layers, n_tokens, shape.d_in, generator=generator)
    mixing = torch.randn(shape.n_layers, shape.d_in, shape.d_out, generator=torch.Generator().manual_seed(1))
    x_lnd[:, :, 0] *= 30
    x_lnd += 2
    y_lnd = x_lnd if shape.kind == "sae" else torch.relu(x_lnd @ mixing) + 5
    return x_lnd, y_lnd.clone()


def small_trainer(kind: str, n_layers: int = 3, **changes: Any) -> Trainer:
    """A trainer on such data."""
    settings = small_settings(kind, **changes)
    shape = small_shape(settings, n_layers)
    return Trainer(settings, shape, small_data(shape, 200))


class Dense:
    """A trainer's weights as float64 leaves, and its forward pass written out.

    Attributes:
        weights: Name to leaf, as in `Parameters.named`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.weights = {
            name: tensor.detach().double().clone().requires_grad_() for name, tensor in trainer.parameters.named()
        }

    def pre_activations(self, layer: int, x_bd: Tensor) -> Tensor:
        """(B, F)."""
        return x_bd @ self.weights[f"encoder_fd.{layer}"].T + self.weights["encoder_bias_lf"][layer]

    def norms(self, layer: int) -> Tensor:
        """(F,)."""
        return self.weights[f"decoder_jfd.{layer}"].square().sum((0, 2)).sqrt()

    def affine(self, layer: int, x_bd: Tensor) -> Tensor:
        """(B, D)."""
        y_bd = self.weights["decoder_bias_ld"][layer].expand(len(x_bd), -1)
        return y_bd + x_bd @ self.weights["skip_ldd"][layer] if "skip_ldd" in self.weights else y_bd

    def written(self, source: int, layer: int, a_bf: Tensor) -> Tensor | float:
        """What one layer's activations write to another, (B, D)."""
        decoder_jfd = self.weights[f"decoder_jfd.{source}"]
        j = layer - source
        return a_bf @ decoder_jfd[j] if 0 <= j < len(decoder_jfd) else 0.0

    def reconstruct(self, x_lbd: Tensor, a_lbf: list[Tensor]) -> Tensor:
        """(L, B, D)."""
        rows = []
        for layer, x_bd in enumerate(x_lbd):
            y_bd = self.affine(layer, x_bd)
            for source in range(layer + 1):
                y_bd = y_bd + self.written(source, layer, a_lbf[source])
            rows.append(y_bd)
        return torch.stack(rows)
