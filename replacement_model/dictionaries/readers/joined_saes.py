"""SAEs of several layers that were named one by one, as one dictionary.

Letters: n decoder rows, J layers a feature writes to, F features of a layer, D the width of the site.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crosstrace.replacement_model.dictionaries.base import Encoder, SparseDictionary


class JoinedSaes(SparseDictionary):
    """Several SAEs of one site and of different layers."""

    def __init__(self, parts: Sequence[SparseDictionary]) -> None:
        """Join dictionaries.

        Args:
            parts: Two or more.

        Raises:
            ValueError: They are of different sites, widths, activation functions or scalings, or of one layer; both are named.
        """
        first = parts[0]
        self.name, self.folder = ", ".join(part.name for part in parts), first.folder
        self.reads = self.writes = first.reads
        self.d_model, self.activation = first.d_model, first.activation
        self.token_scaling = first.token_scaling
        self._parts: dict[int, SparseDictionary] = {}
        for part in parts:
            for what, own, expected in (
                ("reads", part.reads.value, first.reads.value),
                ("d_model", part.d_model, first.d_model),
                ("activation", part.activation, first.activation),
                ("token scaling", part.token_scaling.value, first.token_scaling.value),
            ):
                if own != expected:
                    raise ValueError(f"{part.name}: {what} is {own}; expected {expected}, as in {first.name}")
            for layer in part.layers:
                if tuple(part.written_layers(layer)) != (layer,):
                    raise ValueError(f"{part.name}: a crosscoder stands alone; name it without others")
                if layer in self._parts:
                    raise ValueError(
                        f"{part.name}: has layer {layer}, as {self._parts[layer].name} has; name one of them"
                    )
                self._parts[layer] = part
        self._parts = dict(sorted(self._parts.items()))
        counts = {layer: count for part in parts for layer, count in zip(part.layers, part.n_features, strict=True)}
        self.n_features = [counts[layer] for layer in self._parts]
        self.l0 = first.l0
        expected_l0 = {layer: part.l0_by_layer.get(layer, part.l0) for layer, part in self._parts.items()}
        self.l0_by_layer = {layer: l0 for layer, l0 in expected_l0.items() if l0 is not None}

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose site it reads, ascending."""
        return tuple(self._parts)

    def encoder(self, layer: int) -> Encoder:
        return self._parts[layer].encoder(layer)

    def decoder_rows(self, layer: int, features_n: Tensor) -> Tensor:
        return self._parts[layer].decoder_rows(layer, features_n)

    def decoder(self, layer: int) -> Tensor:
        return self._parts[layer].decoder(layer)

    def dtype(self) -> torch.dtype:
        return next(iter(self._parts.values())).dtype()

    def bias(self, layer: int) -> Tensor:
        return self._parts[layer].bias(layer)

    def centre(self, layer: int) -> Tensor | None:
        return self._parts[layer].centre(layer)

    def labels(self) -> dict[tuple[int, int], str]:
        """Return the feature names kept beside the weights of each part, by (layer, feature).

        Raises:
            ValueError: A label file is damaged.
        """
        found: dict[tuple[int, int], str] = {}
        for part in dict.fromkeys(self._parts.values()):
            found |= part.labels()
        return found
