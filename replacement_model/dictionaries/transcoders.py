"""Transcoders in use: a reader's weights on the chosen device and in the chosen dtype, through the sparse kernels.

The budget decides what stays in memory: of encoders with their skip connections and of decoders as
`crosstrace.replacement_model.dictionaries.in_use` says, where rows are read once per prompt.

The active rows stay for the prompt if they take at most half of the budget. Beyond that a CPU uses them where they lie
in the mapped files, and a GPU gets them layer by layer. On a CPU every product needs float32 rows in the order of the
entries, so they are kept in that form if it takes at most an eighth of the budget and at most 1 GB.

Letters: L layers, P positions, F features of a layer, D d_model, J layers a feature writes to, N active features,
U stored rows of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crosstrace.kernels import SparseActivations
from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.dictionaries.active_rows import ActiveRows, RowsPlace
from crosstrace.replacement_model.dictionaries.base import TranscoderReader
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse, Features, usable_dtype
from crosstrace.replacement_model.memory import usable_bytes

_ROWS_SHARE, _ENTRIES_SHARE, _ENTRIES_BYTES = 0.5, 0.125, 10**9


class Transcoders(DictionaryInUse[TranscoderReader]):
    """Cross-layer or per-layer transcoders behind one interface.

    Attributes:
        n_layers: L.
    """

    kind = "transcoders"

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
        super().__init__(reader, device, dtype, memory_budget, _skip_bytes(reader, dtype))
        self.n_layers = reader.n_layers
        self._skips: dict[int, Tensor | None] = {}

    @property
    def cross_layer(self) -> bool:
        """Whether features write to later layers too."""
        return self.reader.cross_layer

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

    def skip_bytes(self) -> int:
        """Return the memory of all skip connections in use, in bytes."""
        return _skip_bytes(self.reader, self.dtype)

    def skip(self, layer: int) -> Tensor | None:
        """Return a layer's affine skip connection (D, D), `y += u @ skip`, or None."""
        if layer in self._skips:
            return self._skips[layer]
        stored = self.reader.skip(layer)
        skip_dd = None if stored is None else self.place(stored)
        if self.keeps_encoders or skip_dd is None:
            self._skips[layer] = skip_dd
        return skip_dd

    def decoder_rows_of(self, activations: SparseActivations, place: RowsPlace | None = None) -> ActiveRows:
        """Gather the decoder rows of all active features, each stored once.

        Args:
            activations: The active features.
            place: Where the rows are held, see `RowsPlace`; None: the budget decides.
        """
        features = [activations.features[activations.layer(layer)] for layer in range(self.n_layers)]
        if place is None and self.keeps_decoders:
            return ActiveRows([self.decoder(layer) for layer in range(self.n_layers)], features, "whole", self.device)
        distinct_index = [torch.unique(features_n, return_inverse=True) for features_n in features]
        distinct, index = [part[0] for part in distinct_index], [part[1] for part in distinct_index]
        place = place or self.rows_place([len(part) for part in distinct], [len(part) for part in index])[0]
        if place == "mapped":
            for layer, features_u in enumerate(distinct):
                for part in self.parts(layer, features_u):
                    self.reader.decoder_rows(layer, part)  # which refuses damaged ones; what is mapped is not looked at
            return ActiveRows(
                [self.reader.decoder(layer) for layer in range(self.n_layers)], features, place, self.device
            )
        rows = []
        for layer, features_u in enumerate(distinct):
            stored = self.reader.decoder_rows(layer, features_u)
            in_use = stored.to(usable_dtype(self.dtype or stored.dtype)) if place == "host" else self.place(stored)
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

    def affine(self, layer: int, input_pd: Tensor) -> Tensor:
        """Return the part (P, D) of a layer's reconstruction that is not features, `u @ skip + b_dec`.

        It is float32, or float64 for inputs in it.
        """
        dtype = torch.float64 if input_pd.dtype == torch.float64 else torch.float32
        skip, bias_d = self.skip(layer), self.bias(layer).to(dtype)
        if skip is None:
            return bias_d.expand(input_pd.shape[0], -1)
        return input_pd.to(dtype) @ skip.to(dtype) + bias_d

    def reconstruct(self, activations: SparseActivations, rows: ActiveRows, inputs_lpd: Tensor) -> Tensor:
        """Return reconstructions (L, P, D) float32 of every MLP output from active features and transcoder inputs."""
        out_lpd = rows.decode(activations)
        for layer in range(self.n_layers):
            out_lpd[layer] += self.affine(layer, inputs_lpd[layer])
        return out_lpd

    def write(self, layer: int, features: Features, out_lpd: Tensor) -> None:
        """Add one layer's (positions, features, values) into the reconstructions (L, P, D) it writes to, in place."""
        self.add_decoded(layer, features, out_lpd[layer : layer + self.reader.n_written(layer)])


def _skip_bytes(reader: TranscoderReader, dtype: torch.dtype | None) -> int:
    skips = (reader.skip(layer) for layer in range(reader.n_layers))
    return sum(skip.numel() * usable_dtype(dtype or skip.dtype).itemsize for skip in skips if skip is not None)
