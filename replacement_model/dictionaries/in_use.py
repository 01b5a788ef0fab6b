"""A dictionary in use: a reader's weights on the chosen device and in the chosen dtype, through the sparse kernels.

What is said here holds for every kind of dictionary; `crosstrace.replacement_model.dictionaries.transcoders` and
`crosstrace.replacement_model.dictionaries.saes` say what a kind adds. The budget (`memory_budget`, or 80 % of the free
memory) decides what stays in memory:

- Encoders, and what belongs to them, stay once used if together they take at most a quarter of the budget. Otherwise each
  is read for its layer and dropped again.
- Of decoders only the rows of active features are read. If the user sets a budget that holds encoders and decoders twice
  over, whole decoders stay instead.

Letters: P positions, F features of a layer, D the width of the sites, J layers a feature writes to, n active features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

from crosstrace.kernels import decode_layer, encode
from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.dictionaries.base import ActivationKind, Encoder, SparseDictionary
from crosstrace.replacement_model.memory import parse_bytes, usable_bytes

_ENCODER_SHARE, _DECODER_SHARE = 0.25, 0.5
_READ_BYTES = 64 * 2**20
# Decoder rows of a layer that are widened to float32 together, in bytes of it.
_WIDENED_BYTES = 512 * 2**20
# Encoder columns gathered at a time, in bytes of float64.
_COLUMN_BYTES = 64 * 2**20

Reader = TypeVar("Reader", bound=SparseDictionary)
Features = tuple[Tensor, Tensor, Tensor]
"""Positions, features and activations (n,) of a layer's active features, ascending by (position, feature)."""


class DictionaryInUse(ABC, Generic[Reader]):
    """Any sparse dictionary, ready to encode and decode.

    Attributes:
        reader: The files.
        device: Where weights are used.
        dtype: The dtype of encoders and decoders; None: as stored.
        layers: The layers of the model that have features, ascending.
        depths: The layers of the model whose site is reconstructed, ascending: the same, but where one set of latents stands
            for several.
        n_features: For each of them the number of its features.
        d_model: D, the width of the sites.
        reads: The site that encoders read.
        writes: The site that decoders write.
        labels: The feature names kept beside the weights, by (layer, feature).
        memory_budget: Bytes for weights and rows on the device; None: what is free.
        keeps_encoders: Whether encoders stay in memory once used; see the module.
        keeps_decoders: Whether whole decoders stay in memory; see the module.
    """

    def __init__(
        self,
        reader: Reader,
        device: torch.device,
        dtype: torch.dtype | None,
        memory_budget: int | str | None,
        kept_bytes: int = 0,
    ) -> None:
        """Use a reader's weights.

        Args:
            reader: The files.
            device: Where weights are used.
            dtype: The dtype of encoders and decoders; None: as stored. Biases and thresholds are always float32.
            memory_budget: Bytes, or text such as `"8GB"`; None: 80 % of what is free on the device.
            kept_bytes: The memory of what stays with the encoders.

        Raises:
            ValueError: The budget is not a size, or the activation function is not complete.
        """
        k = reader.activation.k
        if (reader.activation.kind is ActivationKind.TOP_K) != (k is not None) or k == 0:
            raise ValueError(f"{self.kind} {reader.name}: activation {reader.activation}; a TopK, and only it, has a k")
        self.reader, self.device, self.dtype = reader, device, dtype
        self.layers = list(reader.layers)
        self.n_features: Mapping[int, int] = dict(zip(self.layers, reader.n_features, strict=True))
        self.d_model, self.reads, self.writes = reader.d_model, reader.reads, reader.writes
        self.depths = sorted({depth for layer in self.layers for depth in reader.written_layers(layer)})
        self.labels = reader.labels()
        self.memory_budget = None if memory_budget is None else parse_bytes(memory_budget)
        budget = self.memory_budget or usable_bytes(device)
        self.keeps_encoders = self.encoder_bytes() + kept_bytes <= _ENCODER_SHARE * budget
        self.keeps_decoders = (
            self.memory_budget is not None and self.encoder_bytes() + self.decoder_bytes() <= _DECODER_SHARE * budget
        )
        self._encoders: dict[int, Encoder] = {}
        self._decoders: dict[int, Tensor] = {}
        self._biases: dict[int, Tensor] = {}

    @property
    @abstractmethod
    def kind(self) -> str:
        """How messages name a dictionary of this kind."""

    @property
    @abstractmethod
    def cross_layer(self) -> bool:
        """Whether features write to later layers too."""

    @abstractmethod
    def check_fits(self, description: ModelDescription, model_name: str) -> None:
        """Refuse a model of another shape.

        Args:
            description: The model.
            model_name: Its name, for the message.

        Raises:
            ValueError: The dictionary is for a model of another shape; both are named.
        """

    @abstractmethod
    def affine(self, layer: int, input_pd: Tensor) -> Tensor:
        """Return the part (P, D) of a layer's reconstruction that is not features, from its inputs (P, D).

        It is float32, or float64 for inputs in it.
        """

    def reconstruction(self, layer: int, written_pd: Tensor, input_pd: Tensor) -> Tensor:
        """Return a layer's reconstruction (P, D) float32.

        Args:
            layer: The layer.
            written_pd: (P, D) the sum of what features write there.
            input_pd: (P, D) the layer's inputs.
        """
        return written_pd + self.affine(layer, input_pd)

    @property
    def name(self) -> str:
        """Its name in graphs and messages."""
        return self.reader.name

    @property
    def weights_dtype(self) -> torch.dtype:
        """The dtype of encoders and decoders in use."""
        return usable_dtype(self.dtype or self.reader.dtype())

    def encoder_bytes(self) -> int:
        """Return the memory of all encoders in use, in bytes."""
        size = self.weights_dtype.itemsize * self.d_model
        return sum(count * (len(self.reader.read_layers(layer)) * size + 8) for layer, count in self.n_features.items())

    def decoder_bytes(self) -> int:
        """Return the memory of all decoders in use, in bytes."""
        rows = sum(count * self.reader.n_written(layer) for layer, count in self.n_features.items())
        return rows * self.d_model * self.weights_dtype.itemsize

    def place(self, tensor: Tensor) -> Tensor:
        """Return a stored tensor on the device, in the dtype of use."""
        return tensor.to(device=self.device, dtype=usable_dtype(self.dtype or tensor.dtype))

    def encoder(self, layer: int) -> Encoder:
        """Return one layer's encoder, on the device."""
        if layer in self._encoders:
            return self._encoders[layer]
        stored = self.reader.encoder(layer)
        encoder = Encoder(
            self.place(stored.w_enc_df), stored.b_enc_f.to(self.device), stored.threshold_f.to(self.device)
        )
        if self.keeps_encoders:
            self._encoders[layer] = encoder
        return encoder

    def bias(self, layer: int) -> Tensor:
        """Return a layer's decoder bias (D,) float32."""
        if layer not in self._biases:
            self._biases[layer] = self.reader.bias(layer).to(self.device)
        return self._biases[layer]

    def encode(self, layer: int, input_pd: Tensor, excluded_first: int) -> Features:
        """Encode a layer's inputs.

        Args:
            layer: The layer.
            input_pd: (P, D) at the site that the dictionary reads; of several layers side by side where it reads several.
            excluded_first: The number of first positions that carry no features.

        Returns:
            Positions, features and activations (n,) of the active features, ascending by (position, feature).
        """
        encoder = self.encoder(layer)
        positions, features, values = encode(
            input_pd[excluded_first:],
            encoder.w_enc_df,
            encoder.b_enc_f,
            encoder.threshold_f,
            self.reader.activation.k,
        )
        return positions + excluded_first, features, values

    def decoder_rows(self, layer: int, features_n: Tensor) -> Tensor:
        """Return the decoder rows (n, J, D) of a layer's features, which may repeat, as the reader has them."""
        if self.keeps_decoders:
            return self.decoder(layer)[features_n]
        distinct, where = torch.unique(features_n, return_inverse=True)
        return self.place(self.reader.decoder_rows(layer, distinct))[where]

    def add_decoded(self, layer: int, features: Features, out_jpd: Tensor) -> None:
        """Add what a layer's features write to the reconstructions (J, P, D) float32 of the J layers that they write to."""
        positions, indices, values = features
        if self.keeps_decoders:
            rows_ujd, index_n = self.decoder(layer), indices
        else:
            distinct, index_n = torch.unique(indices, return_inverse=True)
            rows_ujd = self.place(self.reader.decoder_rows(layer, distinct))
            if self.device.type == "cpu" and rows_ujd.numel() * 4 <= _WIDENED_BYTES:
                rows_ujd = rows_ujd.float()  # once for each row, not for each entry
        decode_layer(out_jpd, positions, values, rows_ujd, index_n)

    def decoder(self, layer: int) -> Tensor:
        """Return a layer's whole decoder (F, J, D) on the device, which stays there."""
        if layer not in self._decoders:
            count, written = self.n_features[layer], self.reader.n_written(layer)
            dtype = usable_dtype(self.dtype or self.reader.decoder(layer).dtype)
            whole_fjd = torch.empty(count, written, self.d_model, dtype=dtype, device=self.device)
            # Through the rows, which are checked as they are read.
            for into_njd, part_n in zip(
                whole_fjd.split(self._rows_at_a_time(layer)), self.parts(layer, torch.arange(count)), strict=True
            ):
                into_njd.copy_(self.reader.decoder_rows(layer, part_n))
            self._decoders[layer] = whole_fjd
        return self._decoders[layer]

    def _rows_at_a_time(self, layer: int) -> int:
        return max(1, _READ_BYTES // (self.reader.n_written(layer) * self.d_model * self.reader.dtype().itemsize))

    def parts(self, layer: int, features_n: Tensor) -> tuple[Tensor, ...]:
        """Split features into parts whose decoder rows are small enough to be read at a time."""
        return features_n.split(self._rows_at_a_time(layer))

    def pre_activations(self, layer: int, input_pd: Tensor, positions_n: Tensor, features_n: Tensor) -> Tensor:
        """Compute the pre-activations (n,) float64 of some features of a layer from its inputs (P, D)."""
        encoder = self.encoder(layer)
        values_n = encoder.b_enc_f[features_n].double()
        at_a_time = max(1, _COLUMN_BYTES // (2 * 8 * len(encoder.w_enc_df)))
        for start in range(0, len(features_n), at_a_time):
            part = slice(start, start + at_a_time)
            columns_nd = encoder.w_enc_df[:, features_n[part]].T.double()
            values_n[part] += (input_pd[positions_n[part]].double() * columns_nd).sum(-1)
        return values_n


def usable_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that weights are used in: float64 becomes float32, since no kernel takes wider ones."""
    return torch.float32 if dtype == torch.float64 else dtype
