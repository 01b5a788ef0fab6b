"""Transcoders in use: a reader's weights on the chosen device and in the chosen dtype, through the sparse kernels.

The budget (`memory_budget`, or 80 % of the free memory) decides what stays in memory:

- Encoders and skip connections stay once used if together they take at most a quarter of the budget. Otherwise each is
  read for its layer and dropped again.
- Of decoders only the rows of active features are read, once per prompt. If the user sets a budget that holds encoders
  and decoders twice over, whole decoders stay instead, which is faster for many prompts with one model.
- The active rows stay for the prompt if they take at most half of the budget. Beyond that a CPU uses them where they lie
  in the mapped files, and a GPU gets them layer by layer. On a CPU every product needs float32 rows in the order of the
  entries, so they are kept in that form if it takes at most an eighth of the budget and at most 1 GB.

Letters: L layers, P positions, F features of a layer, D d_model, J layers a feature writes to, N active features,
U stored rows of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crosstrace.kernels import SparseActivations, decode_layer, encode
from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.dictionaries.active_rows import ActiveRows, RowsPlace
from crosstrace.replacement_model.dictionaries.base import ActivationKind, Encoder, TranscoderReader
from crosstrace.replacement_model.memory import parse_bytes, usable_bytes

_ENCODER_SHARE, _ROWS_SHARE, _DECODER_SHARE = 0.25, 0.5, 0.5
_ENTRIES_SHARE, _ENTRIES_BYTES = 0.125, 10**9
_READ_BYTES = 64 * 2**20
# Encoder columns gathered at a time, in bytes of float64.
_COLUMN_BYTES = 64 * 2**20


class Transcoders:
    """Cross-layer or per-layer transcoders behind one interface.

    Attributes:
        reader: The files.
        device: Where weights are used.
        dtype: The dtype of encoders, decoders and skip connections; None: as stored.
        n_layers: L.
        d_model: D.
        cross_layer: Whether features write to later layers too.
        reads: The site that encoders read.
        labels: The feature names kept beside the weights, by (layer, feature).
        memory_budget: Bytes for weights and rows on the device; None: what is free.
        keeps_encoders: Whether encoders stay in memory once used; see the module.
        keeps_decoders: Whether whole decoders stay in memory; see the module.
    """

    def __init__(
        self,
        reader: TranscoderReader,
        device: torch.device,
        dtype: torch.dtype | None = None,
        memory_budget: int | str | None = None,
    ) -> None:
        """Use a reader's weights.

        Args:
            reader: The files.
            device: Where weights are used.
            dtype: The dtype of encoders, decoders and skip connections; None: as stored. Biases and thresholds are
                always float32.
            memory_budget: Bytes, or text such as `"8GB"`; None: 80 % of what is free on the device.

        Raises:
            ValueError: The budget is not a size, or the activation function is not complete.
        """
        k = reader.activation.k
        if (reader.activation.kind is ActivationKind.TOP_K) != (k is not None) or k == 0:
            raise ValueError(f"transcoders {reader.name}: activation {reader.activation}; a TopK, and only it, has a k")
        self.reader, self.device, self.dtype = reader, device, dtype
        self.n_layers, self.d_model, self.cross_layer = reader.n_layers, reader.d_model, reader.cross_layer
        self.reads = reader.reads
        self.labels = reader.labels()
        self.memory_budget = None if memory_budget is None else parse_bytes(memory_budget)
        budget = self.memory_budget or usable_bytes(device)
        self.keeps_encoders = self.encoder_bytes() + self.skip_bytes() <= _ENCODER_SHARE * budget
        self.keeps_decoders = (
            self.memory_budget is not None and self.encoder_bytes() + self.decoder_bytes() <= _DECODER_SHARE * budget
        )
        self._encoders: dict[int, Encoder] = {}
        self._decoders: dict[int, Tensor] = {}
        self._skips: dict[int, Tensor | None] = {}
        self._biases: dict[int, Tensor] = {}

    @property
    def name(self) -> str:
        """The name of the transcoders in graphs and messages."""
        return self.reader.name

    @property
    def weights_dtype(self) -> torch.dtype:
        """The dtype of encoders and decoders in use."""
        return _usable(self.dtype or self.reader.dtype())

    def check_fits(self, description: ModelDescription, model_name: str) -> None:
        """Refuse a model of another shape.

        Args:
            description: The model.
            model_name: Its name, for the message.

        Raises:
            ValueError: These transcoders are for a model of another shape; both are named.
        """
        for what, of_model, of_transcoders in (
            ("layers", description.n_layers, self.n_layers),
            ("d_model", description.d_model, self.d_model),
        ):
            if of_model != of_transcoders:
                raise ValueError(
                    f"transcoders {self.name} do not fit model {model_name}: "
                    f"{what} is {of_transcoders} in the transcoders and {of_model} in the model"
                )

    def encoder_bytes(self) -> int:
        """Return the memory of all encoders in use, in bytes."""
        return sum(self.reader.n_features) * (self.d_model * self.weights_dtype.itemsize + 8)

    def skip_bytes(self) -> int:
        """Return the memory of all skip connections in use, in bytes."""
        skips = (self.reader.skip(layer) for layer in range(self.n_layers))
        return sum(skip.numel() * _usable(self.dtype or skip.dtype).itemsize for skip in skips if skip is not None)

    def decoder_bytes(self) -> int:
        """Return the memory of all decoders in use, in bytes."""
        rows = sum(count * self.reader.n_written(layer) for layer, count in enumerate(self.reader.n_features))
        return rows * self.d_model * self.weights_dtype.itemsize

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self.device, dtype=_usable(self.dtype or tensor.dtype))

    def encoder(self, layer: int) -> Encoder:
        """Return one layer's encoder, on the device."""
        if layer in self._encoders:
            return self._encoders[layer]
        stored = self.reader.encoder(layer)
        encoder = Encoder(
            self._place(stored.w_enc_df), stored.b_enc_f.to(self.device), stored.threshold_f.to(self.device)
        )
        if self.keeps_encoders:
            self._encoders[layer] = encoder
        return encoder

    def skip(self, layer: int) -> Tensor | None:
        """Return a layer's affine skip connection (D, D), `y += u @ skip`, or None."""
        if layer in self._skips:
            return self._skips[layer]
        stored = self.reader.skip(layer)
        skip_dd = None if stored is None else self._place(stored)
        if self.keeps_encoders or skip_dd is None:
            self._skips[layer] = skip_dd
        return skip_dd

    def bias(self, layer: int) -> Tensor:
        """Return a layer's decoder bias (D,) float32."""
        if layer not in self._biases:
            self._biases[layer] = self.reader.bias(layer).to(self.device)
        return self._biases[layer]

    def encode(self, layer: int, input_pd: Tensor, excluded_first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Encode a layer's inputs.

        Args:
            layer: The layer.
            input_pd: (P, D) at the site that the transcoders read.
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
        """Return the decoder rows (n, J, D) of a layer's features, which may repeat; row j writes to `layer + j`."""
        if self.keeps_decoders:
            return self._decoder(layer)[features_n]
        distinct, where = torch.unique(features_n, return_inverse=True)
        return self._place(self.reader.decoder_rows(layer, distinct))[where]

    def decoder_rows_of(self, activations: SparseActivations, place: RowsPlace | None = None) -> ActiveRows:
        """Gather the decoder rows of all active features, each stored once.

        Args:
            activations: The active features.
            place: Where the rows are held, see `RowsPlace`; None: the budget decides.
        """
        features = [activations.features[activations.layer(layer)] for layer in range(self.n_layers)]
        if place is None and self.keeps_decoders:
            return ActiveRows([self._decoder(layer) for layer in range(self.n_layers)], features, "whole", self.device)
        distinct_index = [torch.unique(features_n, return_inverse=True) for features_n in features]
        distinct, index = [part[0] for part in distinct_index], [part[1] for part in distinct_index]
        place = place or self.rows_place([len(part) for part in distinct], [len(part) for part in index])[0]
        if place == "mapped":
            for layer, features_u in enumerate(distinct):
                for part in self._parts(layer, features_u):
                    self.reader.decoder_rows(layer, part)  # which refuses damaged ones; what is mapped is not looked at
            return ActiveRows(
                [self.reader.decoder(layer) for layer in range(self.n_layers)], features, place, self.device
            )
        rows = []
        for layer, features_u in enumerate(distinct):
            stored = self.reader.decoder_rows(layer, features_u)
            in_use = stored.to(_usable(self.dtype or stored.dtype)) if place == "host" else self._place(stored)
            rows.append(in_use[index[layer]].float() if place == "entries" else in_use)
        return ActiveRows(rows, None if place == "entries" else index, place, self.device)

    def rows_place(self, n_distinct: Sequence[float], n_entries: Sequence[float]) -> tuple[RowsPlace, int]:
        """Decide where the rows of active features are held.

        Args:
            n_distinct: For each layer the number of distinct features that are active.
            n_entries: For each layer the number of active entries.

        Returns:
            The place, and the bytes that the rows take there (`mapped`: in the files).
        """
        stored, entries = (
            int(self.d_model * sum(count * self.reader.n_written(layer) for layer, count in enumerate(counts)))
            for counts in (n_distinct, n_entries)
        )
        budget = self.memory_budget or usable_bytes(self.device)
        if self.device.type == "cpu" and entries * 4 <= min(_ENTRIES_SHARE * budget, _ENTRIES_BYTES):
            return "entries", entries * 4
        n_bytes = stored * self.weights_dtype.itemsize
        if n_bytes <= _ROWS_SHARE * budget:
            return "memory", n_bytes
        # Rounded to another dtype, rows cannot be used where they lie.
        as_stored = self.weights_dtype == self.reader.dtype()
        return ("mapped" if self.device.type == "cpu" and as_stored else "host"), n_bytes

    def _decoder(self, layer: int) -> Tensor:
        if layer not in self._decoders:
            count, written = self.reader.n_features[layer], self.reader.n_written(layer)
            dtype = _usable(self.dtype or self.reader.decoder(layer).dtype)
            whole_fjd = torch.empty(count, written, self.d_model, dtype=dtype, device=self.device)
            # Through the rows, which are checked as they are read.
            for into_njd, part_n in zip(
                whole_fjd.split(self._rows_at_a_time(layer)), self._parts(layer, torch.arange(count)), strict=True
            ):
                into_njd.copy_(self.reader.decoder_rows(layer, part_n))
            self._decoders[layer] = whole_fjd
        return self._decoders[layer]

    def _rows_at_a_time(self, layer: int) -> int:
        return max(1, _READ_BYTES // (self.reader.n_written(layer) * self.d_model * self.reader.dtype().itemsize))

    def _parts(self, layer: int, features_n: Tensor) -> tuple[Tensor, ...]:
        """Split features into parts whose decoder rows are small enough to be read at a time."""
        return features_n.split(self._rows_at_a_time(layer))

    def affine(self, layer: int, input_pd: Tensor) -> Tensor:
        """Return the part (P, D) of a layer's reconstruction that is not features, `u @ skip + b_dec`.

        It is float32, or float64 for inputs in it.
        """
        dtype = torch.float64 if input_pd.dtype == torch.float64 else torch.float32
        skip, bias_d = self.skip(layer), self.bias(layer).to(dtype)
        if skip is None:
            return bias_d.expand(input_pd.shape[0], -1)
        return input_pd.to(dtype) @ skip.to(dtype) + bias_d

    def pre_activations(self, layer: int, input_pd: Tensor, positions_n: Tensor, features_n: Tensor) -> Tensor:
        """Compute the pre-activations (n,) float64 of some features of a layer from its inputs (P, D)."""
        encoder = self.encoder(layer)
        values_n = encoder.b_enc_f[features_n].double()
        at_a_time = max(1, _COLUMN_BYTES // (2 * 8 * self.d_model))
        for start in range(0, len(features_n), at_a_time):
            part = slice(start, start + at_a_time)
            columns_nd = encoder.w_enc_df[:, features_n[part]].T.double()
            values_n[part] += (input_pd[positions_n[part]].double() * columns_nd).sum(-1)
        return values_n

    def reconstruct(self, activations: SparseActivations, rows: ActiveRows, inputs_lpd: Tensor) -> Tensor:
        """Return reconstructions (L, P, D) float32 of every MLP output from active features and transcoder inputs."""
        out_lpd = rows.decode(activations)
        for layer in range(self.n_layers):
            out_lpd[layer] += self.affine(layer, inputs_lpd[layer])
        return out_lpd

    def write(self, layer: int, features: tuple[Tensor, Tensor, Tensor], out_lpd: Tensor) -> None:
        """Add one layer's (positions, features, values) into the reconstructions (L, P, D) it writes to, in place."""
        positions, indices, values = features
        if self.keeps_decoders:
            rows_ujd, index_n = self._decoder(layer), indices
        else:
            distinct, index_n = torch.unique(indices, return_inverse=True)
            rows_ujd = self._place(self.reader.decoder_rows(layer, distinct))
        decode_layer(out_lpd[layer : layer + rows_ujd.shape[1]], positions, values, rows_ujd, index_n)


def _usable(dtype: torch.dtype) -> torch.dtype:
    """The dtype that weights are used in: float64 becomes float32, since no kernel takes wider ones."""
    return torch.float32 if dtype == torch.float64 else dtype
