"""A pass through the `transformers` model itself, with hooks that apply interventions and hold what is frozen.

It serves free attention, the model's own MLPs and generation. With frozen attention, and errors that are not recomputed,
it gives what `frozen_pass` gives.

Letters: B rows, W positions of the pass, C of them covered by the base (the unchanged prompts), X = B * W, L layers,
D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crosstrace.replacement_model.architectures.float32 import inverse_rms
from crosstrace.replacement_model.architectures.hooks import Hook, hooked
from crosstrace.replacement_model.architectures.sites import ModelSites, Site
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.interventions.edited_features import EditTable, Entries, PassWindow, difference, write
from crosstrace.replacement_model.interventions.freeze import Freeze
from crosstrace.replacement_model.interventions.frozen_pass import PassResult, attend, token_change, unchanged_input
from crosstrace.replacement_model.interventions.gates import ROUNDING_OF_A_PASS, count_flips, joined, keep_gates
from crosstrace.replacement_model.interventions.held_errors import HeldErrors
from crosstrace.replacement_model.interventions.padded_prompts import PaddedPrompts
from crosstrace.replacement_model.local.local_model import LocalReplacementModel
from crosstrace.replacement_model.local.running_model import RunningModel

_ReadLocal = Callable[[LocalReplacementModel], Tensor]


def hooked_pass(
    model: RunningModel,
    prompts: PaddedPrompts,
    edits: EditTable,
    freeze: Freeze,
    errors: HeldErrors,
    also: Sequence[tuple[nn.Module, Hook]] = (),
) -> PassResult:
    """Run a batch through the `transformers` model under hooks.

    Args:
        model: The replacement model.
        prompts: The B rows.
        edits: Their edits.
        freeze: What is held.
        errors: How errors are treated.
        also: More hooks, which come after those of the pass.

    Returns:
        The result, with the final norm's output.
    """
    passing = HookedPass(model.sites, model.transcoders, freeze, errors)
    passing.begin(edits, prompts.window, prompts)
    embedded_bwd = passing.embedded(prompts.stack(lambda m: m.residuals_lpd[0]))
    positions_bw = torch.arange(prompts.width, device=embedded_bwd.device) - prompts.shift_b[:, None]
    with hooked([*passing.hooks(), *also]):
        model.sites.text_model(
            inputs_embeds=embedded_bwd,
            attention_mask=prompts.real_bw.long(),
            position_ids=positions_bw.clamp(min=0),
            use_cache=False,
        )
    return passing.result


class HookedPass:
    """The hooks of one forward pass, or of consecutive ones in generation.

    Call `begin` before each forward pass; the positions of the base come first in it.

    Attributes:
        window: The positions that the current pass covers.
        paused: Whether the hooks leave the model alone.
        result: What the current pass has computed so far.
    """

    def __init__(self, sites: ModelSites, transcoders: Transcoders, freeze: Freeze, errors: HeldErrors) -> None:
        self.sites, self.transcoders, self.freeze, self.errors = sites, transcoders, freeze, errors
        self.reads_mid = transcoders.reads is Site.MLP_INPUT
        self.paused = False
        self.result = PassResult()

    def begin(self, edits: EditTable, window: PassWindow, base: PaddedPrompts | None) -> None:
        """Prepare for the next forward pass.

        Args:
            edits: The edits of its rows.
            window: The positions that it covers.
            base: The unchanged prompts at the first positions of the window, which are held; None holds nothing, as for
                newly generated tokens.
        """
        self.edits, self.window, self.base = edits, window, base
        self.covered = 0 if base is None else base.width
        self.result = PassResult()
        device, n_entries = self.sites.unembedding.device, window.n_rows * window.width
        shape = (self.transcoders.n_layers, n_entries, self.transcoders.d_model)
        self._written_lxd = torch.zeros(shape, device=device)

    def hooks(self) -> list[tuple[nn.Module, Hook]]:
        """Return the hooks and their modules, as `crosstrace.replacement_model.architectures.hooks.hooked` takes them."""
        wanted: list[tuple[nn.Module, Hook]] = [
            (self.sites.embedding, self._embed),
            (self.sites.final_norm, self._final),
        ]
        for index in range(len(self.sites.layers)):
            wanted += self._layer_hooks(index)
        return wanted

    def _layer_hooks(self, index: int) -> list[tuple[nn.Module, Hook]]:
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
        """Apply the edits of tokens to token vectors (B, W, D); the result is float32."""
        embedded_bwd = embedded_bwd.float()
        if self.base is not None and any(edit.tokens for edit in self.edits.edits):
            embedded_bwd = embedded_bwd.clone()
            embedded_bwd[:, : self.covered] += token_change(self.base, self.edits)
        return embedded_bwd

    def _embed(self, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        return None if self.paused else self.embedded(output)

    def _frozen(self, norm: nn.Module, x_bwd: Tensor, output_bwd: Tensor, inverse_bc1: Tensor) -> Tensor:
        """Compute the norm's output with denominators frozen at covered positions."""
        output_bwd = output_bwd.clone()
        output_bwd[:, : self.covered] = self.sites.gain(norm) * inverse_bc1 * x_bwd[:, : self.covered].float()
        return output_bwd

    def _norm(self, norm: nn.Module, inverse: _ReadLocal) -> Hook:
        """Make a hook that freezes a norm at its 1 / rms in the unchanged prompt."""

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
        """Compute the MLP's output from features, edits, skip connection and errors."""
        if self.paused:
            return None
        input_bwd, width, n_features = self._input_bwd, self.window.width, self.edits.n_features[layer]
        runs_mlp = self.errors.kind == "recomputed" and not self.freeze.holds_features(layer)
        own = self.window.encode(self.transcoders, layer, input_bwd.flatten(0, 1))
        held = self._held(layer)
        if self.freeze.holds_features(layer):
            own = self._instead(own, held, n_features)
        elif held is not None:
            own = self._keep_gates(layer, own, held)
        if held is not None:
            covered = own.part(own.where % width < self.covered)
            self.result.flips.append(count_flips(covered, held, n_features, self.window.n_rows, width))
        features = self.edits.apply(layer, own, self.window)
        # What the MLP's output already contains: the prompt's features, the recomputed ones, or none.
        reference = own if self.errors.kind == "recomputed" else self._instead(own, held, n_features)
        if self.errors.kind == "dropped":
            reference = reference.part(reference.where % width < self.covered)
        write(self.transcoders, layer, difference(features, reference, n_features), self._written_lxd)
        written_bwd = self._written_lxd[layer].view_as(output_bwd)
        self.result.features.append(features)

        out_bwd = output_bwd.float()
        if self.errors.kind == "dropped":
            affine_bwd = self.transcoders.affine(layer, input_bwd.flatten(0, 1)).view_as(out_bwd)
            out_bwd = torch.where(self.window.live_bw[..., None], affine_bwd, out_bwd)  # elsewhere no MLP is replaced
        out_bwd = out_bwd + written_bwd
        if self.base is not None:
            c = self.covered
            input_change_bcd = self._input_change(layer)
            self.result.input_changes.append(input_change_bcd)
            if not runs_mlp:
                base_bcd = self.base.stack(lambda m: m.residuals_lpd[layer + 1] - m.mids_lpd[layer])
                base_bcd = base_bcd + written_bwd[:, :c]
                skip_dd = self.transcoders.skip(layer)
                if skip_dd is not None:
                    base_bcd = base_bcd + input_change_bcd @ skip_dd.float()
                base_bcd = base_bcd + self.errors.change(self.base, self.edits, layer)
                out_bwd = torch.cat([base_bcd, out_bwd[:, c:]], dim=1)
        return out_bwd

    def _input_change(self, layer: int) -> Tensor:
        """Return the change (B, C, D) float32 of what the layer's transcoder reads."""
        assert self.base is not None
        return self._input_bwd[:, : self.covered].float() - unchanged_input(self.base, layer)

    def _keep_gates(self, layer: int, own: Entries, held: Entries) -> Entries:
        """Keep the gates of features at covered positions that another pass of the same prompt would give too."""
        assert self.base is not None
        beyond = self.window.width - self.covered
        base_xd, change_xd = (
            F.pad(part_bcd, (0, 0, 0, beyond)).flatten(0, 1)
            for part_bcd in (unchanged_input(self.base, layer), self._input_change(layer))
        )
        width, n_features = self.window.width, self.edits.n_features[layer]
        inside = own.where % width < self.covered
        settled = keep_gates(
            self.transcoders, layer, own.part(inside), held, base_xd, change_xd, rounding=ROUNDING_OF_A_PASS
        )
        return joined(settled, own.part(~inside), n_features)

    def _held(self, layer: int) -> Entries | None:
        """Return the unchanged prompts' activations, indexed like the window."""
        if self.base is None:
            return None
        held, width = self.base.held(layer), self.window.width
        return held._replace(where=held.where // self.covered * width + held.where % self.covered)

    def _instead(self, own: Entries, held: Entries | None, n_features: int) -> Entries:
        """Take `held` at covered positions and `own` elsewhere."""
        if held is None:
            return own
        return joined(held, own.part(own.where % self.window.width >= self.covered), n_features)

    def _final(self, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        if self.paused:
            return None
        if self.freeze.norms and self.base is not None:
            inverse_bc1 = self.base.stack(lambda m: m.final_norm.inverse_rms_p1)
            output = self._frozen(self.sites.final_norm, args[0], output, inverse_bc1)
        self.result.normed_bwd = output
        return output
