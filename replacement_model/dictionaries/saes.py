"""Sparse autoencoders and crosscoders in use: dictionaries that read a site and write the same one.

`x' = a W_dec + b_dec` with `a = activation(x W_enc + b_enc)` stands for the vector `x` at the site (Bricken et al. 2023,
"Towards Monosemanticity"; with JumpReLU, Rajamanoharan et al. 2024, equations 1 and 2).

A crosscoder does so at several depths of the residual stream at once (Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer
Features and Model Diffing"). In a weakly causal one every depth has features of its own, which read that depth and write it
and later ones; in an acausal one a single set of latents reads all depths, added up, and writes all.

Some kinds scale each token first, and scale what comes out back; some encode what is left when the decoder bias is
subtracted. Both are done here, in float32, so that the kernels see the plain function.

Letters: P positions, D the width of the site, n active features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.dictionaries.base import SparseDictionary, TokenScaling
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse, Features

# What a layer norm adds to a token's standard deviation, as SAELens has it.
_LAYER_NORM_EPSILON = 1e-5


class Saes(DictionaryInUse[SparseDictionary]):
    """Autoencoders of one site, at one layer or several, or a crosscoder of it."""

    def __init__(
        self,
        reader: SparseDictionary,
        device: torch.device,
        dtype: torch.dtype | None = None,
        memory_budget: int | str | None = None,
    ) -> None:
        """Use a reader's weights.

        Args:
            reader: The files.
            device: Where weights are used.
            dtype: The dtype of encoders and decoders; None: as stored. Biases and thresholds are always float32.
            memory_budget: Bytes, or text such as `"8GB"`; None: 80 % of what is free on the device.

        Raises:
            ValueError: The budget is not a size, the activation function is not complete, or the dictionary is not an
                autoencoder.
        """
        if reader.reads is not reader.writes:
            raise ValueError(
                f"{reader.name}: reads {reader.reads.value} and writes {reader.writes.value}; an SAE writes what it reads"
            )
        super().__init__(reader, device, dtype, memory_budget)

    @property
    def cross_layer(self) -> bool:
        """Whether features write to other layers too, as a crosscoder's do."""
        return any(self.reader.n_written(layer) > 1 for layer in self.layers)

    @property
    def kind(self) -> str:
        """How messages name it."""
        return "crosscoder" if self.cross_layer else "SAE"

    def check_fits(self, description: ModelDescription, model_name: str) -> None:
        """Refuse a model of another shape.

        Args:
            description: The model.
            model_name: Its name, for the message.

        Raises:
            ValueError: The model lacks a layer, or its site has another width; both are named.
        """
        width = self.reads.width(description)
        if self.d_model != width:
            raise ValueError(
                f"{self.kind} {self.name} does not fit model {model_name}: {self.reads.value} is {self.d_model} wide in the "
                f"{self.kind} and {width} in the model"
            )
        if self.depths[-1] >= description.n_layers:
            raise ValueError(
                f"{self.kind} {self.name} does not fit model {model_name}: it reads layer {self.depths[-1]}, and the model has "
                f"layers 0 to {description.n_layers - 1}"
            )

    def affine(self, layer: int, input_pd: Tensor) -> Tensor:
        """Return the decoder bias (P, D), what a reconstruction has beside features.

        It is float32, or float64 for inputs in it.
        """
        dtype = torch.float64 if input_pd.dtype == torch.float64 else torch.float32
        return self.bias(layer).to(dtype).expand(input_pd.shape[0], -1)

    def encode(self, layer: int, input_pd: Tensor, excluded_first: int) -> Features:
        return super().encode(layer, self._encoded(layer, input_pd), excluded_first)

    def pre_activations(self, layer: int, input_pd: Tensor, positions_n: Tensor, features_n: Tensor) -> Tensor:
        return super().pre_activations(layer, self._encoded(layer, input_pd), positions_n, features_n)

    def reconstruction(self, layer: int, written_pd: Tensor, input_pd: Tensor) -> Tensor:
        made_pd = super().reconstruction(layer, written_pd, input_pd)
        if self.reader.token_scaling is TokenScaling.NONE:
            return made_pd
        mean_p1, size_p1 = self._scale(input_pd)
        return made_pd * size_p1 + mean_p1

    def gradient(self, layer: int, feature: int, input_d: Tensor) -> Tensor:
        """Return the gradient (D,) float32 of a latent's pre-activation with respect to what it reads, of one layer.

        Where tokens are scaled, the scale is held at that of the input, as the denominators of the model's own norms are.

        Args:
            layer: The layer.
            feature: The latent.
            input_d: (D,) what it reads.
        """
        column_d = self.encoder(layer).w_enc_df[:, feature].float()
        if self.reader.token_scaling is TokenScaling.NONE:
            return column_d
        _, size_p1 = self._scale(input_d[None])
        if self.reader.token_scaling is TokenScaling.LAYER_NORM:
            return (column_d - column_d.mean()) / (size_p1[0, 0] + _LAYER_NORM_EPSILON)
        return column_d / size_p1[0, 0]

    def _encoded(self, layer: int, input_pd: Tensor) -> Tensor:
        """What encoders are given for raw inputs (P, D)."""
        if self.reader.token_scaling is not TokenScaling.NONE:
            mean_p1, size_p1 = self._scale(input_pd)
            added = _LAYER_NORM_EPSILON if self.reader.token_scaling is TokenScaling.LAYER_NORM else 0.0
            input_pd = (input_pd.float() - mean_p1) / (size_p1 + added)
        centre_d = self.reader.centre(layer)
        return input_pd if centre_d is None else input_pd.float() - centre_d.to(input_pd.device)

    def _scale(self, input_pd: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the size (P, 1) of each token by which it is scaled."""
        input_pd = input_pd.float()
        if self.reader.token_scaling is TokenScaling.NORM:
            norm_p1 = input_pd.norm(dim=1, keepdim=True)
            return torch.zeros_like(norm_p1), norm_p1 / input_pd.shape[1] ** 0.5
        return input_pd.mean(1, keepdim=True), input_pd.std(1, keepdim=True)
