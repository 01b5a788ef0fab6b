"""A pass through local replacement models with frozen attention patterns, on the change that interventions make.

Ameisen et al. 2025, "Circuit Tracing", section "Validating Attribution Graph Hypotheses with Interventions". The pass
carries the difference from the unchanged prompt rather than the residual stream itself. Where the model is frozen into a
linear one, the change is then exact to rounding, however small it is beside the stream, and no change stays exactly zero.

Letters: B rows, W positions of a row, Q of them as queries, X = B * W, P positions of a prompt, L layers, D d_model,
H heads, K kv heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.interventions.edited_features import EditTable, Entries, difference, write
from crosstrace.replacement_model.interventions.freeze import Freeze
from crosstrace.replacement_model.interventions.gates import count_flips, encode_changed
from crosstrace.replacement_model.interventions.held_errors import HeldErrors
from crosstrace.replacement_model.interventions.padded_prompts import PaddedPrompts
from crosstrace.replacement_model.local.frozen import FrozenLayer, FrozenNorm
from crosstrace.replacement_model.local.local_model import LocalReplacementModel


@dataclass
class PassResult:
    """What a pass computed; changes are relative to the unchanged prompts.

    Attributes:
        input_changes: For each layer (B, W, D) float32, the change of the transcoder's input.
        features: For each layer the activations, edits included.
        flips: For each layer (B, 2) int64, how many features of the unchanged prompts' positions became active, and how
            many became inactive, before any edits of them.
        normed_bwd: (B, W, D) the final norm's output, from a pass that carries the residual stream.
        normed_change_bwd: (B, W, D) the change of that output, from a pass that carries the change.
    """

    input_changes: list[Tensor] = field(default_factory=list)
    features: list[Entries] = field(default_factory=list)
    flips: list[Tensor] = field(default_factory=list)
    normed_bwd: Tensor | None = None
    normed_change_bwd: Tensor | None = None


def frozen_pass(prompts: PaddedPrompts, edits: EditTable, freeze: Freeze, errors: HeldErrors) -> PassResult:
    """Run a batch with frozen attention.

    Args:
        prompts: The B rows.
        edits: Their edits.
        freeze: What is held; its attention must be frozen.
        errors: How errors are treated; they cannot be recomputed here, as no MLP runs.

    Returns:
        The result, with the change of the final norm's output.
    """
    some = prompts.locals_g[0]
    n_layers, d_model = some.description.n_layers, some.description.d_model
    norms, result = _Norms(prompts, freeze.norms, some.description.rms_norm_eps), PassResult()
    change_bwd = token_change(prompts, edits)
    written_lxd = torch.zeros(n_layers, prompts.n_rows * prompts.width, d_model, device=change_bwd.device)
    for layer in range(n_layers):
        change_bwd = _through_attention(prompts, norms, layer, change_bwd)
        input_bwd = _transcoder_input(prompts, norms, layer, change_bwd)
        held = prompts.held(layer)
        own = held
        if not freeze.holds_features(layer):
            base_bwd = unchanged_input(prompts, layer)
            own = encode_changed(some.transcoders, layer, prompts.window, held, base_bwd, input_bwd)
        result.flips.append(count_flips(own, held, edits.n_features[layer], prompts.n_rows, prompts.width))
        features = edits.apply(layer, own, prompts.window)
        write(some.transcoders, layer, difference(features, held, edits.n_features[layer]), written_lxd)
        change_bwd = change_bwd + written_lxd[layer].view_as(change_bwd) + errors.change(prompts, edits, layer)
        skip_dd = some.layers[layer].skip_dd
        if skip_dd is not None:
            change_bwd = change_bwd + input_bwd @ skip_dd.float()
        result.input_changes.append(input_bwd)
        result.features.append(features)
    result.normed_change_bwd = norms.change(lambda m: m.final_norm, lambda m: m.residuals_lpd[-1], change_bwd)
    return result


def _through_attention(prompts: PaddedPrompts, norms: _Norms, layer: int, change_bwd: Tensor) -> Tensor:
    """Return the change (B, W, D) of the residual stream after a layer's attention."""
    some = prompts.locals_g[0]
    read_bwd = norms.change(lambda m: m.layers[layer].input_norm, lambda m: m.residuals_lpd[layer], change_bwd)
    attention_bhqk = prompts.stack(lambda m: m.layers[layer].attention_hqk, (1, 2))
    mixed_bwd = attend(read_bwd, attention_bhqk, some.layers[layer], some.description)
    return change_bwd + norms.change(lambda m: m.layers[layer].attention_norm, lambda m: _attended(m, layer), mixed_bwd)


def _transcoder_input(prompts: PaddedPrompts, norms: _Norms, layer: int, change_bwd: Tensor) -> Tensor:
    """Return the change (B, W, D) of what a layer's transcoder reads: the residual stream, before or after the norm."""
    if prompts.locals_g[0].transcoders.reads is Site.MLP_INPUT:
        return change_bwd
    return norms.change(lambda m: m.layers[layer].mlp_norm, lambda m: m.mids_lpd[layer], change_bwd)


def unchanged_input(prompts: PaddedPrompts, layer: int) -> Tensor:
    """Return what a layer's transcoder reads in the unchanged prompts: (B, W, D) float32."""
    return prompts.stack(lambda m: m.layers[layer].mlp_norm[:] * m.mids_lpd[layer])


def token_change(prompts: PaddedPrompts, edits: EditTable) -> Tensor:
    """Return what interventions add to the token vectors: (B, W, D) float32."""
    some = prompts.locals_g[0].residuals_lpd
    change_bwd = torch.zeros(prompts.n_rows, prompts.width, some.shape[-1], device=some.device)
    for row, edit in enumerate(edits.edits):
        prompt = int(prompts.prompt_of_b[row])
        for position, factor in edit.tokens.items():
            vector_d = prompts.locals_g[prompt].residuals_lpd[0, position]
            change_bwd[row, prompts.slots(prompt).start + position] += (factor - 1) * vector_d
    return change_bwd


def attend(read_bwd: Tensor, attention_bhqk: Tensor, weights: FrozenLayer, description: ModelDescription) -> Tensor:
    """Compute attention's output for given probabilities: O(A V), linear in what attention reads.

    Args:
        read_bwd: (B, W, D) what attention reads, after its norm.
        attention_bhqk: (B, H, Q, W) attention probabilities.
        weights: The layer's value and output weights.
        description: Number and width of the kv heads.

    Returns:
        (B, Q, D) float32.
    """
    groups, width = description.n_kv_heads, description.head_dim
    values_bwgx = (read_bwd @ weights.value_weight.float().T).unflatten(-1, (groups, width))
    attention_bghqk = attention_bhqk.unflatten(1, (groups, -1))  # heads that share a kv head are neighbours
    mixed_bqghx = torch.einsum("bghqk,bkgx->bqghx", attention_bghqk, values_bwgx)
    return mixed_bqghx.flatten(2) @ weights.output_weight.float().T


def _attended(local: LocalReplacementModel, layer: int) -> Tensor:
    """Return attention's output (P, D) in the unchanged prompt, before its norm."""
    weights = local.layers[layer]
    read_pd = weights.input_norm[:] * local.residuals_lpd[layer]
    return attend(read_pd[None], weights.attention_hqk[None].float(), weights, local.description)[0]


class _Norms:
    """How a change passes the norms, with frozen or free denominators."""

    def __init__(self, prompts: PaddedPrompts, frozen: bool, eps: float) -> None:
        self.prompts, self.frozen, self.eps = prompts, frozen, eps

    def change(
        self,
        norm: Callable[[LocalReplacementModel], FrozenNorm],
        unchanged: Callable[[LocalReplacementModel], Tensor],
        change_bwd: Tensor,
    ) -> Tensor:
        """Return the change (B, W, D) of a norm's output when its input, (P, D) in the unchanged prompt, changes."""
        gain_d = norm(self.prompts.locals_g[0]).gain_d
        inverse_bw1 = self.prompts.stack(lambda m: norm(m).inverse_rms_p1)
        if self.frozen:
            return gain_d * inverse_bw1 * change_bwd
        base_bwd = self.prompts.stack(unchanged)
        changed_bwd = base_bwd + change_bwd
        now_bw1 = torch.rsqrt(changed_bwd.pow(2).mean(-1, keepdim=True) + self.eps)
        # By the product rule, and 1/√t - 1/√s as (s - t) / (√s √t (√s + √t)), rather than as differences of what is
        # nearly the same: no change stays exactly none, and a small one exact to rounding.
        grown_bw1 = ((2 * base_bwd + change_bwd) * change_bwd).mean(-1, keepdim=True)
        less_bw1 = grown_bw1 * now_bw1 * now_bw1 * inverse_bw1 * inverse_bw1 / (now_bw1 + inverse_bw1)
        return gain_d * (now_bw1 * change_bwd - less_bw1 * base_bwd)
