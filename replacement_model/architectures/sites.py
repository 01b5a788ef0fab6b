"""The live modules of a loaded base model, reached through its description.

Letters: B rows of a batch, P positions, D d_model, H heads, K kv heads, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crosstrace.replacement_model.architectures.description import ModelDescription, ModulePaths
from crosstrace.replacement_model.architectures.float32 import float32_arithmetic, stored_weight
from crosstrace.replacement_model.architectures.hooks import passed_over

# Rows of an unembedding that are widened to float32 at a time, 22 MB of them at the largest d_model.
_ROWS_AT_A_TIME = 1024


class Site(Enum):
    """A place that every layer has, where a sparse dictionary reads or writes.

    The value is the name that fingerprints hold. A layer's MLP reads `MLP_INPUT` through a norm, which makes it
    `MLP_INPUT_NORMED`, and adds `MLP_OUTPUT` to the residual stream.
    """

    ATTENTION_HEADS = "self_attn.o_proj.input"  # what the heads write side by side, H * head_dim wide
    ATTENTION_OUTPUT = "post_attention_layernorm.output"  # what attention adds to the residual stream
    MLP_INPUT = "pre_feedforward_layernorm.input"  # the residual stream after attention
    MLP_INPUT_NORMED = "pre_feedforward_layernorm.output"
    MLP_OUTPUT = "post_feedforward_layernorm.output"  # what the MLP adds to the residual stream
    RESIDUAL = "output"  # the residual stream after the layer

    @property
    def is_input(self) -> bool:
        """Whether the tensor at the site is what `LayerSites.module(site)` is given, rather than what it returns."""
        return self in (Site.ATTENTION_HEADS, Site.MLP_INPUT)

    @property
    def is_branch(self) -> bool:
        """Whether the tensor at the site is a reading of the residual stream, which goes on beside it."""
        return self is Site.MLP_INPUT

    @property
    def short_name(self) -> str:
        """How references name the site, as in `resid_post/12/417`: as Gemma Scope 2's folders do, where they have it."""
        return _SHORT_NAMES[self]

    @staticmethod
    def of_short_name(name: str) -> Site | None:
        """Return the site of a short name, or None."""
        return next((site for site, short_name in _SHORT_NAMES.items() if short_name == name), None)

    def width(self, description: ModelDescription) -> int:
        """Return the size of a vector at the site: D everywhere but at `ATTENTION_HEADS`."""
        if self is Site.ATTENTION_HEADS:
            return description.n_heads * description.head_dim
        return description.d_model

    def value_in(self, args: tuple[Any, ...], output: Any) -> Tensor:
        """Return the tensor at the site (B, P, D), given the arguments and the output of `LayerSites.module(site)`."""
        return args[0] if self.is_input else output


_SHORT_NAMES = {
    Site.ATTENTION_HEADS: "attn_out",
    Site.ATTENTION_OUTPUT: "attn_normed",
    Site.MLP_INPUT: "resid_mid",
    Site.MLP_INPUT_NORMED: "mlp_in",
    Site.MLP_OUTPUT: "mlp_out",
    Site.RESIDUAL: "resid_post",
}


@dataclass(frozen=True)
class LayerSites:
    """The parts of one decoder layer."""

    whole: nn.Module
    attention: nn.Module
    input_norm: nn.Module
    post_attention_norm: nn.Module
    pre_feedforward_norm: nn.Module
    post_feedforward_norm: nn.Module
    value: nn.Module
    output: nn.Module
    mlp: nn.Module | None
    query: nn.Module | None
    key: nn.Module | None
    query_norm: nn.Module | None
    key_norm: nn.Module | None

    @staticmethod
    def of(layer: nn.Module, modules: ModulePaths) -> LayerSites:
        """Return the parts of a decoder layer."""
        attention = layer.get_submodule(modules.attention)
        return LayerSites(
            layer,
            attention,
            layer.get_submodule(modules.input_norm),
            layer.get_submodule(modules.post_attention_norm),
            layer.get_submodule(modules.pre_feedforward_norm),
            layer.get_submodule(modules.post_feedforward_norm),
            attention.get_submodule(modules.value),
            attention.get_submodule(modules.output),
            None if modules.mlp is None else layer.get_submodule(modules.mlp),
            *(
                None if path is None else attention.get_submodule(path)
                for path in (modules.query, modules.key, modules.query_norm, modules.key_norm)
            ),
        )

    def module(self, site: Site) -> nn.Module:
        """Return the module whose forward pass has the tensor of a site among its arguments or as its output."""
        match site:
            case Site.ATTENTION_HEADS:
                return self.output
            case Site.ATTENTION_OUTPUT:
                return self.post_attention_norm
            case Site.MLP_INPUT | Site.MLP_INPUT_NORMED:
                return self.pre_feedforward_norm
            case Site.MLP_OUTPUT:
                return self.post_feedforward_norm
            case Site.RESIDUAL:
                return self.whole

    def value_weight(self) -> Tensor:
        """Return the value projection (K * head_dim, D) as stored."""
        return stored_weight(self.value)

    def output_weight(self) -> Tensor:
        """Return the output projection (D, H * head_dim) as stored."""
        return stored_weight(self.output)


class ModelSites:
    """The live modules of a loaded model.

    Attributes:
        description: The description of the model, the only one that anything asks.
        text_model: The module that runs on embedded tokens.
        embedding: The token embedding.
        final_norm: The norm before the unembedding.
        layers: The parts of each decoder layer.
    """

    def __init__(self, model: nn.Module, description: ModelDescription) -> None:
        modules = description.modules
        self.description = description
        self.text_model = model.get_submodule(modules.text_model)
        self.embedding = self.text_model.get_submodule(modules.embedding)
        self.final_norm = self.text_model.get_submodule(modules.final_norm)
        layers = cast(Iterable[nn.Module], self.text_model.get_submodule(modules.layers))
        self.layers = [LayerSites.of(layer, modules) for layer in layers]
        self._unembedding = model.get_submodule(modules.unembedding)

    def excluding(self, first: int) -> ModelSites:
        """Return the sites of the same modules with another number of excluded first positions.

        Raises:
            ValueError: The number is negative.
        """
        sites = copy.copy(self)
        sites.description = self.description.excluding(first)
        return sites

    @property
    def unembedding(self) -> Tensor:
        """The unembedding (V, D) as stored."""
        return stored_weight(self._unembedding)

    def gain(self, norm: nn.Module) -> Tensor:
        """Return the factor (D,) float32 that a norm applies after dividing by the rms."""
        return self.description.norm_offset + stored_weight(norm).float()

    def embed(self, tokens_p: Tensor) -> Tensor:
        """Return the embedding module's output (P, D) float32, including any factor that it applies."""
        device = self.embedding.get_parameter("weight").device
        return self.embedding(tokens_p if device.type == "meta" else tokens_p.to(device)).float()

    def run(self, residual_bpd: Tensor, first_layer: int = 0) -> Tensor:
        """Run the text model; return the final norm's output (B, P, D).

        Args:
            residual_bpd: (B, P, D) what enters the first layer: embedded tokens.
            first_layer: Start at this layer, with the residual stream that enters it in place of embedded tokens.
        """
        with float32_arithmetic(), passed_over([layer.whole for layer in self.layers[:first_layer]]):
            return self.text_model(inputs_embeds=residual_bpd, use_cache=False).last_hidden_state

    @cached_property
    def mean_unembedding(self) -> Tensor:
        """The mean (D,) float32 of the unembedding's rows."""
        unembedding_vd = self.unembedding
        if unembedding_vd.dtype == torch.float32:
            return unembedding_vd.mean(0)
        # A piece at a time: torch would widen the whole matrix first, which for 262k tokens is more than a trace holds.
        pieces = unembedding_vd.split(_ROWS_AT_A_TIME)
        return torch.stack([piece.sum(0, dtype=torch.float32) for piece in pieces]).sum(0) / len(unembedding_vd)

    def unembed(self, normed_xd: Tensor) -> Tensor:
        """Return the logits (..., V) float32 of final-norm outputs (..., D)."""
        with float32_arithmetic():
            unembedding_vd = self.unembedding
            return F.linear(normed_xd.float().to(unembedding_vd.device), unembedding_vd).to(normed_xd.device)
