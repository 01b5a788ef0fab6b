"""Linear paths from what features write to what later features read, with typical norms in place of a prompt's.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", section "Virtual Weights"; for transcoders Ameisen
et al. 2025, "Circuit Tracing", section "Global Weights in Cross-Layer Transcoders". With s the typical 1 / rms of a norm and g
its gain (see `docs/architecture.md`, "The linear model"), a feature's virtual weight on another is

    V = Σ_j ⟨ W_dec[l, f → j] P_{j→m},  g_pf[m] ⊙ s_pf[m] · W_enc[m, :, f'] ⟩,    l ≤ j < m

P passes the layers between: the identity of the residual stream, and of affine transcoders the skip connections, each layer
I + diag(g_pf s_pf) W_skip. Through one head (k, h) it is the same with that head on the way, between j < k and k ≤ m:

    r ↦ g_pa s_pa ⊙ O_h V_h ( g_in s_in ⊙ r )

per unit of attention: what the target reads at a position that attends to the source's with probability 1.

Letters: L layers, D d_model, H heads, K kv heads, W head width, n features, J layers a feature writes to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from crosstrace.replacement_model import ReplacementModel, Site
from crosstrace.replacement_model.readouts.norm_scales import NormScales

Head = tuple[int, int]
"""(layer, head)."""


@dataclass(frozen=True)
class _Head:
    """One head's matrices in float32, with gains and typical denominators in them."""

    value_wd: Tensor
    output_dw: Tensor


class LinearPaths:
    """The linear paths of a model with its transcoders.

    Attributes:
        model: The replacement model.
        scales: The typical denominators.
        skips: Whether there are skip connections, so that a path depends on where it begins.
    """

    def __init__(self, model: ReplacementModel, scales: NormScales) -> None:
        """
        Args:
            model: The replacement model.
            scales: The typical denominators.

        Raises:
            ValueError: The denominators are of a model with another number of layers.
        """
        layers = model.description.n_layers
        if tuple(scales.inverse_rms_l3.shape) != (layers, 3):
            raise ValueError(f"denominators of shape {tuple(scales.inverse_rms_l3.shape)}; expected ({layers}, 3)")
        self.model, self.scales = model, scales
        self._device = model.transcoders.device
        self._inverse = scales.inverse_rms_l3.tolist()
        self.skips = any(model.transcoders.skip(layer) is not None for layer in range(layers))
        self._heads: dict[Head, _Head] = {}

    def reading_gain(self, layer: int) -> Tensor | float:
        """Return what the residual stream after a layer's attention is multiplied with to give the encoder's input (D,)."""
        if self.model.transcoders.reads is Site.MLP_INPUT:
            return 1.0
        norm = self.model.sites.layers[layer].pre_feedforward_norm
        return self.model.sites.gain(norm).to(self._device) * self._inverse[layer][2]

    def past_mlp(self, layer: int, vectors_nd: Tensor) -> Tensor:
        """Carry vectors (n, D) from before a layer's MLP to behind it: past it, and through the skip connection."""
        skip_dd = self.model.transcoders.skip(layer)
        if skip_dd is None:
            return vectors_nd
        return vectors_nd + (vectors_nd * self.reading_gain(layer)) @ skip_dd.float()

    def back_past_mlp(self, layer: int, gradients_nd: Tensor) -> Tensor:
        """Carry gradients (n, D) from behind a layer's MLP to before it."""
        skip_dd = self.model.transcoders.skip(layer)
        if skip_dd is None:
            return gradients_nd
        return gradients_nd + (gradients_nd @ skip_dd.float().T) * self.reading_gain(layer)

    def through_head(self, head: Head, vectors_nd: Tensor) -> Tensor:
        """Carry vectors (n, D) from what enters a layer to what a head adds, per unit of attention."""
        folded = self._head(head)
        return (vectors_nd @ folded.value_wd.T) @ folded.output_dw.T

    def back_through_head(self, head: Head, gradients_nd: Tensor) -> Tensor:
        """Carry gradients (n, D) from what a head adds to what enters its layer."""
        folded = self._head(head)
        return (gradients_nd @ folded.output_dw) @ folded.value_wd

    def _head(self, head: Head) -> _Head:
        if head not in self._heads:
            layer, number = head
            description = self.model.description
            sites, width = self.model.sites.layers[layer], description.head_dim
            kv_head = number // (description.n_heads // description.n_kv_heads)
            before_d = self.model.sites.gain(sites.input_norm).to(self._device) * self._inverse[layer][0]
            after_d = self.model.sites.gain(sites.post_attention_norm).to(self._device) * self._inverse[layer][1]
            value_wd = sites.value_weight()[kv_head * width : (kv_head + 1) * width].to(self._device).float()
            output_dw = sites.output_weight()[:, number * width : (number + 1) * width].to(self._device).float()
            self._heads[head] = _Head(value_wd * before_d, output_dw * after_d[:, None])
        return self._heads[head]

    def check_head(self, head: Head) -> None:
        """Refuse a head that the model does not have.

        Raises:
            ValueError: It does not exist.
        """
        size = self.model.description
        if not (0 <= head[0] < size.n_layers and 0 <= head[1] < size.n_heads):
            raise ValueError(
                f"there is no head {head[0]}.{head[1]} in {self.model.name}: it has layers 0 to {size.n_layers - 1} "
                f"with heads 0 to {size.n_heads - 1}"
            )

    def push(self, layer: int, rows_njd: Tensor, head: Head | None) -> Iterator[tuple[int, Tensor]]:
        """Carry what features of a layer write up to where later features read.

        Args:
            layer: Their layer.
            rows_njd: (n, J, D) float32 decoder rows.
            head: The head to pass; None for the residual stream alone.

        Yields:
            Each layer m that can read it, and the vectors (n, D) in the residual stream after m's attention.
        """
        if head is not None and head[0] <= layer:
            return
        stream_nd = torch.zeros_like(rows_njd[:, 0])
        passed_nd: Tensor | None = None
        for at in range(layer, self.model.description.n_layers):
            if head is None:
                if at > layer:
                    yield at, stream_nd
            else:
                if at == head[0]:
                    passed_nd = self.through_head(head, stream_nd)
                if passed_nd is not None:
                    yield at, passed_nd
                    passed_nd = self.past_mlp(at, passed_nd)
                    continue
            stream_nd = self.past_mlp(at, stream_nd)
            if at - layer < rows_njd.shape[1]:
                stream_nd = stream_nd + rows_njd[:, at - layer]

    def pull(self, layer: int, readers_nd: Tensor, head: Head | None) -> list[Tensor]:
        """Carry what features of a layer read back to the outputs of the MLPs below.

        Args:
            layer: Their layer.
            readers_nd: (n, D) their encoders times `reading_gain`.
            head: The head to pass; None for the residual stream alone.

        Returns:
            For each MLP from layer 0 on the gradients (n, D) at its output; fewer than `layer` where a head is to be passed
            first, none if it lies above. Without skip connections all are one tensor.
        """
        gradient_nd = readers_nd
        if head is not None:
            if head[0] > layer:
                return []
            for at in range(layer - 1, head[0] - 1, -1):
                gradient_nd = self.back_past_mlp(at, gradient_nd)
            gradient_nd = self.back_through_head(head, gradient_nd)
        gradients = []
        for at in range((layer if head is None else head[0]) - 1, -1, -1):
            gradients.append(gradient_nd)
            gradient_nd = self.back_past_mlp(at, gradient_nd)
        return gradients[::-1]
