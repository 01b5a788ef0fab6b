"""The capture of what passes the sites of the model during one forward pass.

Letters: P positions, D d_model, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from crosstrace.replacement_model.architectures.float32 import inverse_rms
from crosstrace.replacement_model.architectures.hooks import Hook
from crosstrace.replacement_model.architectures.sites import ModelSites, Site
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.local.frozen import FrozenAttention, FrozenLayer, FrozenNorm

Swap = Callable[[int, Tensor, Tensor], Tensor | None]


class Capture:
    """Hooks that read, and optionally replace, what passes the sites during one forward pass at batch 1.

    Attributes:
        residuals: After the pass, the residual stream (P, D) float32 that enters each layer, and what the final norm
            reads.
        mids: The residual stream (P, D) after each layer's attention.
        layers: Each layer with attention and norms frozen.
        final_norm: The frozen final norm.
    """

    def __init__(
        self,
        sites: ModelSites,
        transcoders: Transcoders,
        swap: Swap,
        store: Callable[[Tensor], Tensor] = lambda block: block,
    ) -> None:
        """Prepare a capture.

        Args:
            sites: The live modules of the base model.
            transcoders: The transcoders whose inputs are read.
            swap: Given layer, transcoder input and MLP output (P, D), in the dtype of the pass; returns what replaces
                the output, or None to keep it.
            store: What to do with a layer's attention before it is kept, such as moving it to the host.
        """
        self.sites, self.transcoders, self.store, self.swap = sites, transcoders, store, swap
        self.device = transcoders.device
        self.residuals: list[Tensor] = []
        self.mids: list[Tensor] = []
        self.layers: list[FrozenLayer] = []
        self.final_norm: FrozenNorm
        self._rotations: dict[int, tuple[Tensor, tuple[Tensor, Tensor]]] = {}

    def hooks(self) -> list[tuple[nn.Module, Hook]]:
        """Return the hooks, as `hooked` takes them."""
        wanted: list[tuple[nn.Module, Hook]] = [(self.sites.final_norm, self._final)]
        for index, layer in enumerate(self.sites.layers):
            wanted += [
                (layer.input_norm, self._residual),
                (layer.attention, self._attention),
                (layer.pre_feedforward_norm, self._mlp_input),
                (layer.post_feedforward_norm, partial(self._mlp_output, index)),
            ]
        return wanted

    def _freeze(self, norm: nn.Module, input_pd: Tensor) -> FrozenNorm:
        inverse_p1 = inverse_rms(input_pd, self.sites.description.rms_norm_eps)
        return FrozenNorm(self._kept(self.sites.gain(norm)), inverse_p1.to(torch.float32))

    def _here(self, tensor: Tensor) -> Tensor:
        """A tensor on the device of tracing: with a device map each layer has its own."""
        return tensor.to(self.device)

    def _kept(self, tensor: Tensor) -> Tensor:
        """A tensor on the device of tracing in float32, which everything but the swap gets, whatever the pass is in."""
        return tensor.to(self.device, torch.float32)

    def _residual(self, args: tuple[Tensor, ...], kwargs: Any, output: Tensor) -> None:
        self._residual_pd = self._here(args[0][0])
        self.residuals.append(self._kept(self._residual_pd))

    def _attention(self, args: Any, kwargs: Any, output: tuple[Tensor, Tensor]) -> None:
        window = self.sites.description.window(len(self.layers))
        attention = FrozenAttention.from_dense(self._kept(output[1][0]), window, self.store)
        self._attended = (self._here(output[0][0]), attention)
        rotation = kwargs.get("position_embeddings", args[1] if len(args) > 1 else None)
        self._rotation = None if rotation is None else self._kept_rotation(rotation)

    def _kept_rotation(self, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """A layer's cosines and sines (P, head_dim) as kept, shared by the layers that are given the same."""
        known = self._rotations.get(id(rotation[0]))
        if known is None or known[0] is not rotation[0]:
            cosines_1pw, sines_1pw = rotation
            known = cosines_1pw, (self._kept(cosines_1pw[0]), self._kept(sines_1pw[0]))
            self._rotations[id(cosines_1pw)] = known
        return known[1]

    def _mlp_input(self, args: tuple[Tensor, ...], kwargs: Any, output: Tensor) -> None:
        layer, index = self.sites.layers[len(self.layers)], len(self.layers)
        attended_pd, attention = self._attended
        mid_pd = self._here(args[0][0])
        if self.transcoders.reads is Site.MLP_INPUT:
            ones_pd = torch.ones_like(mid_pd, dtype=torch.float32)
            mlp_norm = FrozenNorm(ones_pd[0], ones_pd[:, :1])
            self._input_pd = mid_pd
        else:
            mlp_norm = self._freeze(layer.pre_feedforward_norm, mid_pd)
            self._input_pd = self._here(output[0])
        self.mids.append(self._kept(mid_pd))
        self.layers.append(
            FrozenLayer(
                attention=attention,
                read_value_weight=layer.value_weight,
                read_output_weight=layer.output_weight,
                read_skip=partial(self.transcoders.skip, index),
                has_skip=self.transcoders.skip(index) is not None,
                input_norm=self._freeze(layer.input_norm, self._residual_pd),
                attention_norm=self._freeze(layer.post_attention_norm, attended_pd),
                mlp_norm=mlp_norm,
                rotation=self._rotation,
            )
        )

    def _mlp_output(self, layer: int, args: Any, kwargs: Any, output_bpd: Tensor) -> Tensor | None:
        swapped_pd = self.swap(layer, self._input_pd, self._here(output_bpd[0]))
        return None if swapped_pd is None else swapped_pd[None].to(output_bpd.device)

    def _final(self, args: tuple[Tensor, ...], kwargs: Any, output: Tensor) -> None:
        self.residuals.append(self._kept(args[0][0]))
        self.final_norm = self._freeze(self.sites.final_norm, self._here(args[0][0]))
