"""A pass through the transformers model itself, with hooks that apply interventions and hold what is frozen.

Used where attention is free, where the model's own MLPs run, and for generation; with attention frozen and errors
fixed it gives what :mod:`crosstrace.replacement_model.interventions.frozen_pass` gives.

Letters: B rows, W positions of the pass, C of them covered by the base (the unchanged prompts), X = B * W, L layers,
D d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.float32 import inverse_rms
from crosstrace.replacement_model.architectures.hooks import Hook
from crosstrace.replacement_model.architectures.sites import ModelSites, Site
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.interventions.edited_features import EditTable, Entries, Window, difference, write
from crosstrace.replacement_model.interventions.frozen_pass import PassResult, attend, token_change, unchanged_input
from crosstrace.replacement_model.interventions.kinds import Errors, Freeze
from crosstrace.replacement_model.interventions.padded_prompts import PaddedPrompts
from crosstrace.replacement_model.local.local_model import LocalReplacementModel

ReadLocal = Callable[[LocalReplacementModel], Tensor]


class HookedPass:
    """The hooks of one forward pass, or of one after the other in generation.

    Call :meth:`begin` before each forward pass; positions of the base come first in it.
    """

    def __init__(self, sites: ModelSites, transcoders: Transcoders, freeze: Freeze, errors: Errors) -> None:
        self.sites, self.transcoders, self.freeze, self.errors = sites, transcoders, freeze, errors
        self.reads_mid = transcoders.reads is Site.MLP_INPUT
        self.paused = False
        self.result = PassResult()

    def begin(
        self,
        edits: EditTable,
        window: Window,
        base: PaddedPrompts | None,
        error_change: Callable[[int], Tensor] | None,
    ) -> None:
        """Say what the next forward pass looks at.

        Args:
            base: covers the first positions of the window; None: nothing is frozen, as for newly generated tokens.
            error_change: gives for a layer what is added to the base's errors (B, C, D).
        """
        self.edits, self.window, self.base = edits, window, base
        self.error_change = error_change
        self.covered = 0 if base is None else base.width
        self.result = PassResult()
        device, n_entries = self.sites.unembedding.device, window.n_rows * window.width
        shape = (self.transcoders.n_layers, n_entries, self.transcoders.d_model)
        self._written_lxd = torch.zeros(shape, device=device)

    def hooks(self) -> list[tuple[Any, Hook]]:
        """What :func:`crosstrace.replacement_model.hooks.hooked` takes."""
        wanted: list[tuple[Any, Hook]] = [(self.sites.embedding, self._embed), (self.sites.final_norm, self._final)]
        for index in range(len(self.sites.layers)):
            wanted += self._layer_hooks(index)
        return wanted

    def _layer_hooks(self, index: int) -> list[tuple[Any, Hook]]:
        layer, eps = self.sites.layers[index], self.sites.description.rms_norm_eps
        return [
            (layer.input_norm, self._norm(layer.input_norm, lambda m: inverse_rms(m.residuals_lpd[index], eps))),
            (layer.attention, lambda args, kwargs, output: self._attention(index, args, kwargs, output)),
            (
                layer.post_attention_norm,
                self._norm(layer.post_attention_norm, lambda m: m.layers[index].attention_norm.inverse_rms_p1),
            ),
            (layer.pre_feedforward_norm, lambda args, kwargs, output: self._mlp_input(index, args, output)),
            (layer.post_feedforward_norm, lambda args, kwargs, output: self._mlp_output(index, output)),
        ]

    def embedded(self, embedded_bwd: Tensor) -> Tensor:
        """Token vectors (B, W, D) in float32, tokens intervened on."""
        embedded_bwd = embedded_bwd.float()
        if self.base is not None and any(edit.tokens for edit in self.edits.edits):
            embedded_bwd = embedded_bwd.clone()
            embedded_bwd[:, : self.covered] += token_change(self.base, self.edits)
        return embedded_bwd

    def _embed(self, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        return None if self.paused else self.embedded(output)

    def _frozen(self, norm: Any, x_bwd: Tensor, output_bwd: Tensor, inverse_bc1: Tensor) -> Tensor:
        """The norm's output, its denominators frozen at covered positions."""
        output_bwd = output_bwd.clone()
        output_bwd[:, : self.covered] = self.sites.gain(norm) * inverse_bc1 * x_bwd[:, : self.covered].float()
        return output_bwd

    def _norm(self, norm: Any, inverse: ReadLocal) -> Hook:
        """Freezes a norm at its 1 / rms in the unchanged prompt."""

        def hook(args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
            if self.paused or not self.freeze.norms or self.base is None:
                return None
            return self._frozen(norm, args[0], output, self.base.stack(inverse))

        return hook

    def _attention(self, layer: int, args: Any, kwargs: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any] | None:
        if self.paused or not self.freeze.attention or self.base is None:
            return None
        read_bwd = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        attention_bhcc = self.base.stack(lambda m: m.layers[layer].attention_hqk, (1, 2))
        weights = self.base.locals_g[0].layers[layer]
        mixed_bwd = output[0].clone()
        mixed_bwd[:, : self.covered] = attend(
            read_bwd[:, : self.covered], attention_bhcc, weights, self.sites.description
        )
        return mixed_bwd, *output[1:]

    def _mlp_input(self, layer: int, args: Any, output: Tensor) -> Tensor | None:
        if self.paused:
            return None
        norm = self.sites.layers[layer].pre_feedforward_norm
        if self.freeze.norms and self.base is not None:
            eps = self.sites.description.rms_norm_eps
            inverse_bc1 = self.base.stack(lambda m: inverse_rms(m.mids_lpd[layer], eps))
            output = self._frozen(norm, args[0], output, inverse_bc1)
        self._input_bwd = args[0] if self.reads_mid else output
        return output

    def _mlp_output(self, layer: int, output_bwd: Tensor) -> Tensor | None:
        """The MLP's output: what features, edits, skip connection and errors make of it."""
        if self.paused:
            return None
        input_bwd, width, n_features = self._input_bwd, self.window.width, self.edits.n_features[layer]
        runs_mlp = self.errors == "recomputed" and not self.freeze.holds_features(layer)
        own = self.window.encode(self.transcoders, layer, input_bwd.flatten(0, 1))
        held = self._held(layer)
        if self.freeze.holds_features(layer):
            own = self._instead(own, held, n_features)
        features = self.edits.apply(layer, own, self.window)
        # What the MLP's output is taken to hold already: the prompt's features, the recomputed ones, or none.
        reference = own if self.errors == "recomputed" else self._instead(own, held, n_features)
        if self.errors == "dropped":
            reference = _part(reference, reference.where % width < self.covered)
        write(self.transcoders, layer, difference(features, reference, n_features), self._written_lxd)
        written_bwd = self._written_lxd[layer].view_as(output_bwd)
        self.result.features.append(features)

        out_bwd = output_bwd.float()
        if self.errors == "dropped":
            affine_bwd = self.transcoders.affine(layer, input_bwd.flatten(0, 1)).view_as(out_bwd)
            out_bwd = torch.where(self.window.live_bw[..., None], affine_bwd, out_bwd)  # elsewhere no MLP is replaced
        out_bwd = out_bwd + written_bwd
        if self.base is not None:
            c = self.covered
            input_change_bcd = input_bwd[:, :c].float() - unchanged_input(self.base, layer)
            self.result.input_changes.append(input_change_bcd)
            if not runs_mlp:
                base_bcd = self.base.stack(lambda m: m.residuals_lpd[layer + 1] - m.mids_lpd[layer])
                base_bcd = base_bcd + written_bwd[:, :c]
                skip_dd = self.transcoders.skip(layer)
                if skip_dd is not None:
                    base_bcd = base_bcd + input_change_bcd @ skip_dd.float()
                if self.error_change is not None:
                    base_bcd = base_bcd + self.error_change(layer)
                out_bwd = torch.cat([base_bcd, out_bwd[:, c:]], dim=1)
        return out_bwd

    def _held(self, layer: int) -> Entries | None:
        """The unchanged prompts' activations, indexed as the window is."""
        if self.base is None:
            return None
        held, width = self.base.held(layer), self.window.width
        return held._replace(where=held.where // self.covered * width + held.where % self.covered)

    def _instead(self, own: Entries, held: Entries | None, n_features: int) -> Entries:
        """``held`` at covered positions, ``own`` elsewhere."""
        if held is None:
            return own
        rest = _part(own, own.where % self.window.width >= self.covered)
        keys, order = torch.cat([held.keys(n_features), rest.keys(n_features)]).sort()
        return Entries.from_keys(keys, torch.cat([held.values, rest.values])[order], n_features)

    def _final(self, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        if self.paused:
            return None
        if self.freeze.norms and self.base is not None:
            inverse_bc1 = self.base.stack(lambda m: m.final_norm.inverse_rms_p1)
            output = self._frozen(self.sites.final_norm, args[0], output, inverse_bc1)
        self.result.normed_bwd = output
        return output


def _part(entries: Entries, kept: Tensor) -> Entries:
    return Entries(entries.where[kept], entries.features[kept], entries.values[kept])
