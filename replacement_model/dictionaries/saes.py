"""Sparse autoencoders in use: dictionaries that read a site and write the same one.

`x' = a W_dec + b_dec` with `a = activation(x W_enc + b_enc)` stands for the vector `x` at the site (Bricken et al. 2023,
"Towards Monosemanticity"; with JumpReLU, Rajamanoharan et al. 2024, equations 1 and 2).

Letters: P positions, D the width of the site.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.dictionaries.base import SparseDictionary
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse


class Saes(DictionaryInUse[SparseDictionary]):
    """Autoencoders of one site, at one layer or several."""

    kind = "SAE"
    cross_layer = False

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
                f"SAE {self.name} does not fit model {model_name}: {self.reads.value} is {self.d_model} wide in the SAE and "
                f"{width} in the model"
            )
        if self.layers[-1] >= description.n_layers:
            raise ValueError(
                f"SAE {self.name} does not fit model {model_name}: it reads layer {self.layers[-1]}, and the model has "
                f"layers 0 to {description.n_layers - 1}"
            )

    def affine(self, layer: int, input_pd: Tensor) -> Tensor:
        """Return the decoder bias (P, D), what a reconstruction has beside features.

        It is float32, or float64 for inputs in it.
        """
        dtype = torch.float64 if input_pd.dtype == torch.float64 else torch.float32
        return self.bias(layer).to(dtype).expand(input_pd.shape[0], -1)
