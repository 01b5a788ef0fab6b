"""Transcoders in use: a reader's weights on the device and in the dtype wanted, through the sparse kernels.

What stays in memory, by the budget (``memory_budget``; without one, 80 % of what is free):

- Encoders, skip connections: kept once used if together they take at most a quarter of the budget, else read for a
  layer and dropped again.
- Decoders: only the rows of active features, read once a prompt. With a budget of the user's own that holds encoders and
  decoders twice over, whole decoders are kept instead: for many prompts with one model.
- The active rows themselves are kept for the prompt if they take at most half of the budget. Beyond that a CPU uses them
  where they lie in the mapped files, and a GPU gets them a layer at a time. On a CPU, where every product needs float32
  rows in the order of the entries, they are kept as such if that takes at most an eighth of the budget and 1 GB.

Letters: L layers, P positions, F features of a layer, D d_model, J layers a feature writes to, N active features,
U stored rows of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crosstrace.kernels import SparseActivations, decode_layer, encode
from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.dictionaries.active_rows import ActiveRows, Place
from crosstrace.replacement_model.dictionaries.readers import Encoder, TranscoderReader
from crosstrace.replacement_model.memory import parse_bytes, usable_bytes

_ENCODER_SHARE, _ROWS_SHARE, _DECODER_SHARE = 0.25, 0.5, 0.5
_ENTRIES_SHARE, _ENTRIES_BYTES = 0.125, 10**9


class Transcoders:
    """Cross-layer or per-layer transcoders behind one interface.

    Attributes:
        memory_budget: bytes for weights and rows on the device, or None for what is free.
        keeps_encoders, keeps_decoders: what stays in memory once used; see the module.
    """

    def __init__(
        self,
        reader: TranscoderReader,
        device: torch.device,
        dtype: torch.dtype | None = None,
        memory_budget: int | str | None = None,
    ) -> None:
        """``dtype``: of encoder, decoder and skip (None: as stored); biases and thresholds are float32 always.

        Raises:
            ValueError: ``memory_budget`` is not a size.
        """
        self.reader, self.device, self.dtype = reader, device, dtype
        self.n_layers, self.d_model, self.cross_layer = reader.n_layers, reader.d_model, reader.cross_layer
        self.input_site = reader.input_site
        self.labels = reader.labels()
        self.memory_budget = None if memory_budget is None else parse_bytes(memory_budget)
        budget = self.memory_budget or usable_bytes(device)
        self.keeps_encoders = self.encoder_bytes() <= _ENCODER_SHARE * budget
        self.keeps_decoders = (
            self.memory_budget is not None and self.encoder_bytes() + self.decoder_bytes() <= _DECODER_SHARE * budget
        )
        self._encoders: dict[int, Encoder] = {}
        self._decoders: dict[int, Tensor] = {}
        self._skips: dict[int, Tensor | None] = {}
        self._biases: dict[int, Tensor] = {}

    @property
    def name(self) -> str:
        return self.reader.name

    @property
    def weights_dtype(self) -> torch.dtype:
        """The dtype of encoders and decoders in use."""
        return _usable(self.dtype or self.reader.dtype())

    def check_fits(self, description: ModelDescription, model_name: str) -> None:
        """
        Raises:
            ValueError: these transcoders are for a model of another shape; both are named.
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
        """Memory of all encoders in use."""
        return sum(self.reader.n_features) * (self.d_model * self.weights_dtype.itemsize + 8)

    def decoder_bytes(self) -> int:
        """Memory of all decoders in use."""
        rows = sum(count * self.reader.n_written(layer) for layer, count in enumerate(self.reader.n_features))
        return rows * self.d_model * self.weights_dtype.itemsize

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self.device, dtype=_usable(self.dtype or tensor.dtype))

    def encoder(self, layer: int) -> Encoder:
        """One layer's encoder: (D, F), (F,), (F,)."""
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
        """(D, D) affine skip connection of a layer, ``y += u @ skip``, or None."""
        if layer in self._skips:
            return self._skips[layer]
        stored = self.reader.skip(layer)
        skip_dd = None if stored is None else self._place(stored)
        if self.keeps_encoders or skip_dd is None:
            self._skips[layer] = skip_dd
        return skip_dd

    def bias(self, layer: int) -> Tensor:
        """(D,) float32 decoder bias."""
        if layer not in self._biases:
            self._biases[layer] = self.reader.bias(layer).to(self.device)
        return self._biases[layer]

    def encode(self, layer: int, input_pd: Tensor, excluded_first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Active features of a layer past the excluded first positions: positions, features, values (n,)."""
        encoder = self.encoder(layer)
        positions, features, values = encode(
            input_pd[excluded_first:], encoder.w_enc_df, encoder.b_enc_f, encoder.threshold_f
        )
        return positions + excluded_first, features, values

    def decoder_rows(self, layer: int, features_n: Tensor) -> Tensor:
        """(n, J, D) decoder rows of a layer's features; row j writes to layer + j. A feature may be named repeatedly."""
        if self.keeps_decoders:
            return self._decoder(layer)[features_n]
        distinct, where = torch.unique(features_n, return_inverse=True)
        return self._place(self.reader.decoder_rows(layer, distinct))[where]

    def decoder_rows_of(self, activations: SparseActivations, place: Place | None = None) -> ActiveRows:
        """The decoder rows of all active features, each stored once.

        Args:
            place: where they are held; None: by the budget. See :class:`ActiveRows`.
        """
        features = [activations.features[activations.layer(layer)] for layer in range(self.n_layers)]
        if place is None and self.keeps_decoders:
            return ActiveRows([self._decoder(layer) for layer in range(self.n_layers)], features, "whole", self.device)
        distinct_index = [torch.unique(features_n, return_inverse=True) for features_n in features]
        distinct, index = [part[0] for part in distinct_index], [part[1] for part in distinct_index]
        place = place or self.rows_place([len(part) for part in distinct], [len(part) for part in index])[0]
        if place == "mapped":
            return ActiveRows(
                [self.reader.decoder(layer) for layer in range(self.n_layers)], features, place, self.device
            )
        rows = []
        for layer, features_u in enumerate(distinct):
            stored = self.reader.decoder_rows(layer, features_u)
            in_use = stored.to(_usable(self.dtype or stored.dtype)) if place == "host" else self._place(stored)
            rows.append(in_use[index[layer]].float() if place == "entries" else in_use)
        return ActiveRows(rows, None if place == "entries" else index, place, self.device)

    def rows_place(self, n_distinct: Sequence[float], n_entries: Sequence[float]) -> tuple[Place, int]:
        """Where the rows of active features are held, and their bytes there (``mapped``: in the files).

        Args:
            n_distinct, n_entries: for each layer how many distinct features are active, and how many entries there are.
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
            self._decoders[layer] = self._place(self.reader.decoder(layer))
        return self._decoders[layer]

    def affine(self, layer: int, input_pd: Tensor) -> Tensor:
        """(P, D) float32: the part of a layer's reconstruction that is not features, ``u @ skip + b_dec``."""
        skip = self.skip(layer)
        if skip is None:
            return self.bias(layer).expand(input_pd.shape[0], -1)
        return input_pd.float() @ skip.float() + self.bias(layer)

    def reconstruct(self, activations: SparseActivations, rows: ActiveRows, inputs_lpd: Tensor) -> Tensor:
        """(L, P, D) float32 reconstructions of every MLP output from active features and transcoder inputs."""
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
    """Weights stored in float64 are used in float32: no kernel takes wider ones."""
    return torch.float32 if dtype == torch.float64 else dtype
