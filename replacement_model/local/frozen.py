"""What the local replacement model freezes: attention patterns and norm denominators.

Letters: P positions, H heads, Q queries and C keys of a block, D d_model, K kv heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.description import ModelDescription

# Keys of a block: small blocks skip more of what causality makes zero, large ones make large products.
BLOCK_KEYS = 256


# The share of a GPU's budget that all layers' attention may take before it is kept on the host.
_ATTENTION_SHARE = 4


def attention_bytes(description: ModelDescription, n_positions: int) -> int:
    """Return the memory of all layers' attention probabilities in bytes, without a window."""
    return 4 * description.n_layers * description.n_heads * n_positions**2


def keeps_attention_on_host(description: ModelDescription, n_positions: int, device: torch.device, budget: int) -> bool:
    """Tell whether attention is kept in host memory rather than on the device of tracing.

    Args:
        description: The base model.
        n_positions: P.
        device: Where tracing happens.
        budget: Bytes for transcoders and all that a prompt needs on the device.
    """
    return device.type != "cpu" and attention_bytes(description, n_positions) > budget // _ATTENTION_SHARE


@dataclass(frozen=True)
class FrozenNorm:
    """An RMSNorm whose denominator is frozen: one factor per position and dimension, kept as its two parts.

    Attributes:
        gain_d: (D,) float32 factor of each dimension.
        inverse_rms_p1: (P, 1) float32 factor of each position.
    """

    gain_d: Tensor
    inverse_rms_p1: Tensor

    def __getitem__(self, positions: int | slice | Tensor) -> Tensor:
        """Return the factors (..., D) float32 at some positions."""
        return self.gain_d * self.inverse_rms_p1[positions]


@dataclass(frozen=True)
class AttentionBlock:
    """Neighbouring keys and the queries that can see any of them.

    Attributes:
        keys: The positions of the C keys.
        queries: The positions of the Q queries.
        probabilities_hqc: (H, Q, C) float32.
    """

    keys: slice
    queries: slice
    probabilities_hqc: Tensor


@dataclass(frozen=True)
class FrozenAttention:
    """The attention probabilities of one layer, without those that the mask makes zero (later keys, outside the window).

    They are float32 whatever the weights are: rounding them to bfloat16 would put edges off by 1e-3. Blocks may lie in
    host memory while the rest is on a GPU.

    Attributes:
        blocks: The blocks, by ascending keys.
        n_positions: P.
    """

    blocks: tuple[AttentionBlock, ...]
    n_positions: int

    @staticmethod
    def from_dense(
        attention_hqk: Tensor, window: int | None, store: Callable[[Tensor], Tensor] = lambda block: block
    ) -> FrozenAttention:
        """Cut probabilities into blocks.

        Args:
            attention_hqk: (H, P, P) float32 [head, query, key].
            window: How many last keys a query sees, its own included; None: all up to its own.
            store: What to do with a block before it is kept, such as moving it to the host.
        """
        n_positions = attention_hqk.shape[-1]
        blocks = []
        for first in range(0, n_positions, BLOCK_KEYS):
            last = min(first + BLOCK_KEYS, n_positions)
            end = n_positions if window is None else min(n_positions, last - 1 + window)
            part_hqc = attention_hqk[:, first:end, first:last]
            whole = part_hqc.shape == attention_hqk.shape
            blocks.append(
                AttentionBlock(slice(first, last), slice(first, end), store(part_hqc if whole else part_hqc.clone()))
            )
        return FrozenAttention(tuple(blocks), n_positions)

    @property
    def nbytes(self) -> int:
        """The memory of the blocks, in bytes."""
        return sum(block.probabilities_hqc.numel() * block.probabilities_hqc.element_size() for block in self.blocks)

    def own(self, device: torch.device | None = None) -> Tensor:
        """Return the probabilities (H, P) float32 with which each position looks at itself."""
        parts = []
        for block in self.blocks:
            first = block.keys.start - block.queries.start
            square = block.probabilities_hqc[:, first : first + block.keys.stop - block.keys.start]
            parts.append(torch.diagonal(square, dim1=1, dim2=2).to(device or square.device))
        return torch.cat(parts, dim=1)

    def dense(self, device: torch.device | None = None) -> Tensor:
        """Return the probabilities (H, P, P) float32 [head, query, key]."""
        some = self.blocks[0].probabilities_hqc
        if len(self.blocks) == 1:
            return some.to(device or some.device)
        dense_hqk = some.new_zeros(some.shape[0], self.n_positions, self.n_positions, device=device or some.device)
        for block in self.blocks:
            dense_hqk[:, block.queries, block.keys] = block.probabilities_hqc.to(dense_hqk.device)
        return dense_hqk


@dataclass(frozen=True)
class FrozenLayer:
    """One layer with attention and norms frozen: everything that its adjoint needs.

    Attributes:
        attention: The frozen attention probabilities.
        read_value_weight: Gives the model's own value projection: weights that accelerate keeps elsewhere are fetched
            only when they are used.
        read_output_weight: Gives the model's own output projection.
        read_skip: Gives the skip connection of the layer's transcoder, or None.
        has_skip: Whether there is a skip connection.
        input_norm: The norm before attention.
        attention_norm: The norm after attention.
        mlp_norm: The norm before the MLP; all ones if transcoders read the residual stream before that norm.
        rotation: The layer's own rotation of queries and keys: its cosines and sines, (P, head_dim) float32 each; None where
            attention is not given any.
    """

    attention: FrozenAttention
    read_value_weight: Callable[[], Tensor]
    read_output_weight: Callable[[], Tensor]
    read_skip: Callable[[], Tensor | None]
    has_skip: bool
    input_norm: FrozenNorm
    attention_norm: FrozenNorm
    mlp_norm: FrozenNorm
    rotation: tuple[Tensor, Tensor] | None = None

    @property
    def attention_hqk(self) -> Tensor:
        """The attention probabilities (H, P, P) [head, query, key], on the device of the norms."""
        return self.attention.dense(self.input_norm.gain_d.device)

    @property
    def value_weight(self) -> Tensor:
        """The value projection (K * head_dim, D), on the device of the norms."""
        return self.read_value_weight().to(self.input_norm.gain_d.device)

    @property
    def output_weight(self) -> Tensor:
        """The output projection (D, H * head_dim), on the device of the norms."""
        return self.read_output_weight().to(self.input_norm.gain_d.device)

    @property
    def skip_dd(self) -> Tensor | None:
        """The affine skip connection (D, D) of the layer's transcoder, or None."""
        return self.read_skip()
