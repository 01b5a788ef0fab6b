"""What the local replacement model freezes: attention patterns and norm denominators.

Letters: P positions, H heads, Q queries and C keys of a block, D d_model, K kv heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Keys of a block: smaller ones skip more of what causality makes zero, larger ones make larger products.
_BLOCK_KEYS = 256


@dataclass(frozen=True)
class FrozenNorm:
    """An RMSNorm whose denominator is frozen: a factor for every position and dimension, kept as its two parts."""

    gain_d: Tensor  # (D,) 1 + weight
    inverse_rms_p1: Tensor  # (P, 1)

    def __getitem__(self, positions: int | slice | Tensor) -> Tensor:
        """(..., D) float32 factors at some positions."""
        return self.gain_d * self.inverse_rms_p1[positions]


@dataclass(frozen=True)
class AttentionBlock:
    """Some neighbouring keys and the queries that can see any of them."""

    keys: slice
    queries: slice
    probabilities_hqc: Tensor  # (H, Q, C) float32


@dataclass(frozen=True)
class FrozenAttention:
    """The attention probabilities of one layer, without what the mask makes zero: later keys, and outside the window.

    They stay float32 whatever the weights are: rounded to bfloat16, edges would be off by 1e-3. Blocks may lie in host
    memory while the rest is on a GPU.
    """

    blocks: tuple[AttentionBlock, ...]
    n_positions: int

    @staticmethod
    def from_dense(
        attention_hqk: Tensor, window: int | None, store: Callable[[Tensor], Tensor] = lambda block: block
    ) -> FrozenAttention:
        """Cut (H, P, P) probabilities [head, query, key] into blocks.

        Args:
            window: a query sees so many last keys, itself included; None: all before it.
            store: what to do with a block before it is kept, such as moving it to the host.
        """
        n_positions = attention_hqk.shape[-1]
        blocks = []
        for first in range(0, n_positions, _BLOCK_KEYS):
            last = min(first + _BLOCK_KEYS, n_positions)
            end = n_positions if window is None else min(n_positions, last - 1 + window)
            part_hqc = attention_hqk[:, first:end, first:last]
            whole = part_hqc.shape == attention_hqk.shape
            blocks.append(
                AttentionBlock(slice(first, last), slice(first, end), store(part_hqc if whole else part_hqc.clone()))
            )
        return FrozenAttention(tuple(blocks), n_positions)

    @property
    def nbytes(self) -> int:
        return sum(block.probabilities_hqc.numel() * block.probabilities_hqc.element_size() for block in self.blocks)

    def dense(self, device: torch.device | None = None) -> Tensor:
        """(H, P, P) float32 [head, query, key]."""
        some = self.blocks[0].probabilities_hqc
        if len(self.blocks) == 1:
            return some.to(device or some.device)
        dense_hqk = some.new_zeros(some.shape[0], self.n_positions, self.n_positions, device=device or some.device)
        for block in self.blocks:
            dense_hqk[:, block.queries, block.keys] = block.probabilities_hqc.to(dense_hqk.device)
        return dense_hqk


@dataclass(frozen=True)
class FrozenLayer:
    """One layer with attention and norms frozen: everything its adjoint needs.

    ``read_value_weight`` and ``read_output_weight`` give the model's own projections: weights that accelerate keeps
    elsewhere are only fetched when they are used.
    """

    attention: FrozenAttention
    read_value_weight: Callable[[], Tensor]
    read_output_weight: Callable[[], Tensor]
    read_skip: Callable[[], Tensor | None]
    has_skip: bool
    input_norm: FrozenNorm
    attention_norm: FrozenNorm  # after attention
    mlp_norm: FrozenNorm  # before the MLP; all ones where transcoders read the residual before that norm

    @property
    def attention_hqk(self) -> Tensor:
        """(H, P, P) attention probabilities [head, query, key], on the device of the norms."""
        return self.attention.dense(self.input_norm.gain_d.device)

    @property
    def value_weight(self) -> Tensor:
        """(K * head_dim, D), on the device of the norms"""
        return self.read_value_weight().to(self.input_norm.gain_d.device)

    @property
    def output_weight(self) -> Tensor:
        """(D, H * head_dim), on the device of the norms"""
        return self.read_output_weight().to(self.input_norm.gain_d.device)

    @property
    def skip_dd(self) -> Tensor | None:
        """(D, D) affine skip connection of the layer's transcoder, or None."""
        return self.read_skip()
