"""A random cross-layer transcoder with what is active, and the ways to encode, decode and score that are compared.

Letters: L layers, P positions, D d_model, F features of a layer, B target rows, J layers a feature writes to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crosstrace.kernels import SparseActivations, decode, encode, scores
from crosstrace.kernels.decoding import decode_layer_dense

# An einsum over gathered rows copies (B, n, J, D), an `index_add` (n, J, D); past these many bytes they are left out.
COPY_LIMIT, ROW_COPY_LIMIT = 1 << 28, 1 << 32


@dataclass
class Workload:
    """``active`` features a token and layer on average, so many of each layer."""

    n_layers: int
    n_positions: int
    d_model: int
    n_features: int
    active: float
    n_rows: int
    dtype: torch.dtype
    device: torch.device

    def __post_init__(self) -> None:
        L, P, D, n = self.n_layers, self.n_positions, self.d_model, self.n_features

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, device=self.device)

        self.x_lpd = random(L, P, D)
        self.encoders_df = [random(D, n).mul_(D**-0.5).to(self.dtype) for _ in range(L)]
        self.bias_f = torch.zeros(n, device=self.device)
        # halfway between the last that shall be active and the first that shall not, over all tokens of the layer
        self.thresholds_f = []
        for x_pd, w_df in zip(self.x_lpd, self.encoders_df, strict=True):
            h = (x_pd @ w_df.float()).flatten().sort(descending=True).values
            last = min(max(1, round(self.active * P)), h.numel() - 1)
            middle = (h[last - 1] + h[last]) / 2 if self.active < n else h[-1] - 1
            self.thresholds_f.append(self.bias_f + middle)
        self.activations = SparseActivations.from_layers([self.encode_layer(layer) for layer in range(L)], P)
        self.decoders_fjd = [torch.randn(n, L - layer, D, device=self.device, dtype=self.dtype) for layer in range(L)]
        acts = self.activations
        self.indices = [acts.features[acts.layer(layer)] for layer in range(L)]
        self.positions = [acts.positions[acts.layer(layer)] for layer in range(L)]
        self.values = [acts.values[acts.layer(layer)] for layer in range(L)]
        self.gradients_bpld = random(self.n_rows, P, L, D)

    def encode_layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        return encode(self.x_lpd[layer], self.encoders_df[layer], self.bias_f, self.thresholds_f[layer])

    @cached_property
    def rows_njd(self) -> list[Tensor]:
        """A row for every entry, as read from files: gathered once a prompt."""
        return [decoder[index] for decoder, index in zip(self.decoders_fjd, self.indices, strict=True)]

    @property
    def written(self) -> int:
        """Pairs of an active entry and a layer it writes to."""
        return sum(len(index) * (self.n_layers - layer) for layer, index in enumerate(self.indices))

    def weight_bytes(self, way: str) -> int:
        """Of the decoder rows a way has to hold: all, one an entry, or those used anywhere once."""
        blocks = self.n_layers * (self.n_layers + 1) // 2
        pairs = {"dense": self.n_features * blocks, "sparse, packed rows": self.written}.get(way, self.used)
        return pairs * self.d_model * self.dtype.itemsize

    @cached_property
    def used(self) -> int:
        """Pairs of a feature active anywhere and a layer it writes to."""
        return sum(int(index.unique().numel()) * (self.n_layers - layer) for layer, index in enumerate(self.indices))

    def work(self, operation: str, dense: bool) -> tuple[float, float]:
        """Bytes that must be moved (each input read once, each output written once) and floating-point operations."""
        L, P, D, n, B = self.n_layers, self.n_positions, self.d_model, self.n_features, self.n_rows
        size, entries = self.dtype.itemsize, len(self.activations)
        blocks = L * (L + 1) // 2
        if operation == "encode":
            return L * D * n * size + L * P * D * 4 + (L * P * n * 4 if dense else entries * 20), 2.0 * L * P * D * n
        pairs = P * n * blocks if dense else self.written
        used = n * blocks if dense else self.used  # a row that several positions use has to be read once at least
        if operation == "decode":
            return used * D * size + L * P * D * 4, 2.0 * pairs * D
        out = B * (L * P * n if dense else entries) * 4
        return used * D * size + self.gradients_bpld.numel() * 4 + out, 2.0 * B * pairs * D


def encode_ways(work: Workload) -> dict[str, Callable[[], Any]]:
    layers = range(work.n_layers)

    def dense(layer: int) -> Tensor:
        h_pf = work.x_lpd[layer].to(work.dtype) @ work.encoders_df[layer] + work.bias_f
        return h_pf * (h_pf > work.thresholds_f[layer])

    return {
        "sparse": lambda: [work.encode_layer(layer) for layer in layers],
        "dense": lambda: [dense(layer) for layer in layers],
        "dense + to_sparse": lambda: [dense(layer).to_sparse() for layer in layers],
    }


def decode_ways(work: Workload) -> dict[str, Callable[[], Tensor]]:
    L, P, D = work.n_layers, work.n_positions, work.d_model
    acts = work.activations

    def empty() -> Tensor:
        return torch.zeros(L, P, D, device=work.device)

    def dense() -> Tensor:
        out_lpd = empty()
        for layer, decoder in enumerate(work.decoders_fjd):
            decode_layer_dense(out_lpd[layer:], work.positions[layer], work.values[layer], decoder, work.indices[layer])
        return out_lpd

    def embedding_bag() -> Tensor:
        out_lpd = empty()
        for layer, decoder in enumerate(work.decoders_fjd):
            starts_p = acts.offsets[layer * P : layer * P + P] - acts.offsets[layer * P]
            weights = work.values[layer].to(work.dtype)
            bags_px = F.embedding_bag(
                work.indices[layer],
                decoder.flatten(1),
                starts_p.to(work.device),
                mode="sum",
                per_sample_weights=weights,
            )
            out_lpd[layer:] += bags_px.view(P, L - layer, D).transpose(0, 1)
        return out_lpd

    def gather() -> Tensor:
        out_lpd = empty()
        for layer, decoder in enumerate(work.decoders_fjd):
            rows_jnd = (decoder[work.indices[layer]] * work.values[layer][:, None, None]).transpose(0, 1)
            out_lpd[layer:].index_add_(1, work.positions[layer], rows_jnd)
        return out_lpd

    ways = {
        "sparse": lambda: decode(acts, work.decoders_fjd, work.indices),
        "sparse, packed rows": lambda: decode(acts, work.rows_njd),
        "dense": dense,
        "embedding_bag": embedding_bag,
    }
    copied = len(work.indices[0]) * L * work.d_model * 4
    return ways | ({"gather + index_add": gather} if copied < ROW_COPY_LIMIT else {})


def scores_ways(work: Workload) -> dict[str, Callable[[], Tensor]]:
    acts, gradients, P = work.activations, work.gradients_bpld, work.n_positions

    def dense() -> Tensor:
        out_bn = torch.empty(work.n_rows, len(acts), device=work.device)
        for layer, decoder in enumerate(work.decoders_fjd):
            gradient_x = gradients[:, :, layer:].reshape(work.n_rows * P, -1).to(work.dtype)
            every_bpf = (gradient_x @ decoder.flatten(1).T).view(work.n_rows, P, -1)
            out_bn[:, acts.layer(layer)] = every_bpf[:, work.positions[layer], work.indices[layer]].float()
        return out_bn.mul_(acts.values)

    def per_group() -> Tensor:
        out_bn = torch.empty(work.n_rows, len(acts), device=work.device)
        offsets = acts.offsets.tolist()
        for layer, decoder in enumerate(work.decoders_fjd):
            for position in range(P):
                start, stop = offsets[layer * P + position : layer * P + position + 2]
                rows_nx = decoder[acts.features[start:stop]].flatten(1)
                out_bn[:, start:stop] = gradients[:, position, layer:].flatten(1).to(work.dtype) @ rows_nx.T
        return out_bn.mul_(acts.values)

    def einsum() -> Tensor:
        parts = [
            torch.einsum("bnjd,njd->bn", gradients[:, work.positions[layer], layer:].to(work.dtype), decoder[index])
            for layer, (decoder, index) in enumerate(zip(work.decoders_fjd, work.indices, strict=True))
        ]
        return torch.cat(parts, 1).float().mul_(acts.values)

    ways = {
        "sparse": lambda: scores(acts, work.decoders_fjd, gradients, work.indices),
        "sparse, packed rows": lambda: scores(acts, work.rows_njd, gradients),
        "dense": dense,
        "gather + matmul": per_group,
    }
    copied = len(work.indices[0]) * work.n_layers * work.d_model * work.n_rows * work.dtype.itemsize
    return ways | ({"gather + einsum": einsum} if copied < COPY_LIMIT else {})


WAYS = {"encode": encode_ways, "decode": decode_ways, "scores": scores_ways}
