"""Frozen layers with the norms folded into the matrices: what sweeps up and down the layers multiply with.

Gains go into the projections and 1 / rms into the attention pattern, so that a layer is matrix products and nothing else.

Letters: D d_model, H heads, K kv heads, W head width, Q queries and C keys of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.local.frozen import FrozenLayer
from crosstrace.replacement_model.local.record import PassRecord

# The share of the budget that folded layers may take to be kept.
_FOLDED_SHARE = 8


@dataclass(frozen=True)
class FoldedLayer:
    """One layer's matrices in float32 with the gains folded in.

    Attributes:
        output_dx: (D, H * W), rows times the gain of the norm after attention.
        value_xd: (K * W, D), columns times the gain of the norm before.
        skip_dd: (D, D), the skip connection transposed, columns times the gain of the norm before the MLP; or None.
    """

    output_dx: Tensor
    value_xd: Tensor
    skip_dd: Tensor | None


class FoldedLayers:
    """The folded layers of one prompt, made when they are needed and kept if the budget allows.

    Attributes:
        record: The forward pass.
    """

    def __init__(self, record: PassRecord, budget: int) -> None:
        """Fold the layers of a forward pass.

        Args:
            record: What the forward pass left behind.
            budget: Bytes for transcoders and all that a prompt needs on the device; see `keeps_folded`.
        """
        self.record = record
        with_skip = any(layer.has_skip for layer in record.layers)
        self._keeps = keeps_folded(record.description, with_skip, budget)
        self._folded: dict[int, FoldedLayer] = {}

    def __getitem__(self, layer: int) -> FoldedLayer:
        if layer in self._folded:
            return self._folded[layer]
        frozen = self.record.layers[layer]
        skip_dd = frozen.skip_dd
        folded = FoldedLayer(
            frozen.output_weight.float() * frozen.attention_norm.gain_d[:, None],
            frozen.value_weight.float() * frozen.input_norm.gain_d,
            None if skip_dd is None else skip_dd.float().T * frozen.mlp_norm.gain_d,
        )
        if self._keeps:
            self._folded[layer] = folded
        return folded

    def release(self) -> None:
        """Give back what is kept; it is made again when needed."""
        self._folded.clear()


def folded_patterns(frozen: FrozenLayer, positions: slice) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield a layer's attention among neighbouring positions, block by block, with 1 / rms of both norms folded in.

    Args:
        frozen: The layer.
        positions: Which positions; start and stop are given.

    Yields:
        The keys and the queries of a block, counted from the first position, and its pattern (H, Q, C).
    """
    after_q = frozen.attention_norm.inverse_rms_p1[:, 0]
    before_c = frozen.input_norm.inverse_rms_p1[:, 0]
    for block in frozen.attention.blocks:
        keys = slice(max(block.keys.start, positions.start), min(block.keys.stop, positions.stop))
        queries = slice(max(block.queries.start, positions.start), min(block.queries.stop, positions.stop))
        if keys.start >= keys.stop or queries.start >= queries.stop:
            continue
        seen_hqc = block.probabilities_hqc[
            :,
            queries.start - block.queries.start : queries.stop - block.queries.start,
            keys.start - block.keys.start : keys.stop - block.keys.start,
        ].to(after_q.device)
        first = positions.start
        yield (
            slice(keys.start - first, keys.stop - first),
            slice(queries.start - first, queries.stop - first),
            seen_hqc * (after_q[queries, None] * before_c[keys]),
        )


def folded_bytes(description: ModelDescription, with_skip: bool) -> int:
    """Return the memory of all layers' folded matrices, in bytes."""
    heads = description.n_heads + description.n_kv_heads
    skip = description.d_model if with_skip else 0
    return 4 * description.n_layers * description.d_model * (heads * description.head_dim + skip)


def keeps_folded(description: ModelDescription, with_skip: bool, budget: int) -> bool:
    """Tell whether folded layers are kept between batches, within their share of the budget in bytes, or made anew."""
    return folded_bytes(description, with_skip) <= budget // _FOLDED_SHARE
