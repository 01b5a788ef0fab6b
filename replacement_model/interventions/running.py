"""Run prompts under interventions: one forward pass each, or many in one.

Ameisen et al. 2025, "Circuit Tracing", section "Validating Attribution Graph Hypotheses with Interventions". Deviations:
skip connections of affine transcoders stay live wherever features are held, as in the linear model of the graph; and the
errors can be frozen, recomputed by the model's own MLPs (what the paper perturbs), or dropped.

Letters: B rows of a batch, P positions of a prompt, W of the longest, L layers, D d_model, V vocabulary, Q positions
whose logits are read, T features whose pre-activations are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crosstrace.kernels import SparseActivations
from crosstrace.replacement_model.architectures.float32 import float32_arithmetic
from crosstrace.replacement_model.architectures.hooks import hooked
from crosstrace.replacement_model.interventions.edited_features import EditTable, row_activations
from crosstrace.replacement_model.interventions.edits import Edits, resolve
from crosstrace.replacement_model.interventions.frozen_pass import PassResult, frozen_pass
from crosstrace.replacement_model.interventions.hooked_pass import HookedPass
from crosstrace.replacement_model.interventions.kinds import Errors, Freeze, Intervention
from crosstrace.replacement_model.interventions.padded_prompts import PaddedPrompts, Side
from crosstrace.replacement_model.local.local_model import LocalReplacementModel

if TYPE_CHECKING:
    from crosstrace.replacement_model.model import ReplacementModel
    from crosstrace.replacement_model.prompts import Prompt

# Rows of a batch are run so many at a time that the largest tensors of a pass stay within this.
_BATCH_BYTES = 512 * 2**20

Run = tuple["Prompt | LocalReplacementModel", Sequence[Intervention]]


@dataclass(frozen=True)
class Outcome:
    """One prompt under interventions, beside the prompt without.

    Attributes:
        logits_qv: (Q, V) float32 logits at the positions asked for; logit_changes_qv: against the unchanged prompt.
        preactivations_t: (T,) of the features asked for (h, before JumpReLU); preactivation_changes_t.
    """

    logits_qv: Tensor
    logit_changes_qv: Tensor
    preactivations_t: Tensor
    preactivation_changes_t: Tensor
    read_activations: Callable[[], SparseActivations] = field(repr=False)

    @cached_property
    def activations(self) -> SparseActivations:
        """The features that were active in the end, those intervened on at the values they were given."""
        return self.read_activations()

    @property
    def logits_v(self) -> Tensor:
        """(V,) logits at the last position asked for."""
        return self.logits_qv[-1]


def intervene(
    model: ReplacementModel,
    prompt: Prompt | LocalReplacementModel,
    interventions: Sequence[Intervention],
    freeze: Freeze | str = "iterative",
    errors: Errors | Tensor = "frozen",
    positions: Sequence[int] = (-1,),
    read_features: Tensor | None = None,
) -> Outcome:
    """Run one prompt under interventions; see :func:`intervene_batch`.

    Example:
        >>> model = ReplacementModel.demo()
        >>> prompt = "The capital of the state containing Dallas is"
        >>> outcome = intervene(model, prompt, [Ablate("Texas")])
        >>> model.token_strings(outcome.logits_v.topk(3).indices)
    """
    return intervene_batch(model, [(prompt, interventions)], freeze, errors, positions, read_features)[0]


def intervene_batch(
    model: ReplacementModel,
    runs: Sequence[Run],
    freeze: Freeze | str = "iterative",
    errors: Errors | Tensor = "frozen",
    positions: Sequence[int] = (-1,),
    read_features: Tensor | None = None,
    padding_side: Side = "right",
    batch_size: int | None = None,
) -> list[Outcome]:
    """Run prompts under interventions, many in one forward pass.

    Args:
        model: the replacement model.
        runs: pairs of a prompt and what to do to it. A prompt that several runs share is best given as its local
            replacement model (``model.local(prompt)``), so that it is run through the unchanged model once.
        freeze: what is held at the prompt's own values: ``"direct"``, ``"constrained:LAYER"``, ``"iterative"``, or a
            :class:`Freeze` that says more.
        errors: of the MLP outputs, what transcoders miss: ``"frozen"`` at the unchanged prompt's vectors,
            ``"recomputed"`` (the model's own MLPs run, and what is changed in features is added to their output),
            ``"dropped"``, or vectors (L, P, D) to put in their place. Without an intervention, frozen and recomputed
            errors both give the unchanged model.
        positions: whose logits are returned; negative ones count from a prompt's end.
        read_features: (T, 3) int64 rows (layer, position, feature) whose pre-activations are returned; negative positions
            count from a prompt's end.
        padding_side: where shorter prompts of a batch are filled up; changes nothing but the layout in memory.
        batch_size: runs in one pass; None: by memory. The result does not depend on it.

    Returns:
        an outcome for each run, in order.

    Raises:
        ValueError: a prompt, an intervention or a place to read that cannot be, or contradictory interventions; one line
            that says which.
    """
    freeze = Freeze.parse(freeze)
    check_held(model, freeze, errors)
    if not len(positions):
        raise ValueError("positions are empty: give those whose logits are to be returned, such as (-1,)")
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side must be left or right, not {padding_side!r}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    if not runs:
        return []
    localize = model.localizer()
    locals_b = [localize(prompt) for prompt, _ in runs]
    edits_b = [
        resolve(interventions, local, localize) for local, (_, interventions) in zip(locals_b, runs, strict=True)
    ]
    if not isinstance(errors, str) or errors != "frozen":
        _check_error_edits(edits_b)
    for local in {id(local): local for local in locals_b}.values():
        _check_read(read_features, local)
    at_a_time = batch_size or max(1, _BATCH_BYTES // max(_row_bytes(local, len(positions)) for local in locals_b))
    outcomes: list[Outcome] = []
    for start in range(0, len(runs), at_a_time):
        part = slice(start, start + at_a_time)
        batch = _Batch(model, locals_b[part], edits_b[part], freeze, errors, padding_side)
        outcomes += batch.outcomes(positions, read_features)
    return outcomes


def check_held(model: ReplacementModel, freeze: Freeze, errors: Errors | Tensor) -> None:
    """Refuse what a pass cannot hold.

    Raises:
        ValueError: a layer that is not there, unknown errors, or errors that do not go with the freeze.
    """
    n_layers = model.description.n_layers
    if freeze.up_to is not None and not 0 <= freeze.up_to < n_layers:
        raise ValueError(f"constrained up to layer {freeze.up_to}: the model has layers 0 to {n_layers - 1}")
    if not isinstance(errors, Tensor) and errors not in ("frozen", "recomputed", "dropped"):
        raise ValueError(f"unknown errors {errors!r}: known are frozen, recomputed, dropped, or vectors (L, P, D)")
    if isinstance(errors, str) and errors == "recomputed" and freeze.norms:
        raise ValueError(
            f"errors are recomputed by the model's own MLPs, and a {freeze.name} pass with frozen norms does not run "
            "them; free the norms, or freeze or drop the errors"
        )


def _check_error_edits(edits_b: Sequence[Edits]) -> None:
    if any(edits.errors for edits in edits_b):
        raise ValueError("errors can be intervened on only where they are frozen, not recomputed, dropped or replaced")


def _check_read(features_t3: Tensor | None, local: LocalReplacementModel) -> None:
    if features_t3 is None:
        return
    if (
        not isinstance(features_t3, Tensor)
        or features_t3.ndim != 2
        or features_t3.shape[1] != 3
        or features_t3.is_floating_point()
    ):
        raise ValueError("read_features must be a (T, 3) tensor of whole numbers, rows (layer, position, feature)")
    n_features = local.transcoders.reader.n_features
    for layer, position, feature in features_t3.tolist():
        if not 0 <= layer < len(n_features):
            raise ValueError(
                f"read_features: layer {layer} is not there; the model has layers 0 to {len(n_features) - 1}"
            )
        if not 0 <= feature < n_features[layer]:
            raise ValueError(f"read_features: L{layer}/{feature} is not there; layer {layer} has {n_features[layer]:,}")
        _position(position, local)


def _row_bytes(local: LocalReplacementModel, n_read: int) -> int:
    """Memory of a row: what is written to every layer, attention, and a few copies of the stream and of the logits."""
    size = local.description
    per_position = size.d_model * (size.n_layers + 12) + local.n_positions * size.n_heads * 2
    return 4 * (local.n_positions * per_position + 3 * n_read * size.vocab_size)


class _Batch:
    """Some runs in one pass."""

    def __init__(
        self,
        model: ReplacementModel,
        locals_b: Sequence[LocalReplacementModel],
        edits_b: Sequence[Edits],
        freeze: Freeze,
        errors: Errors | Tensor,
        side: Side,
    ) -> None:
        self.model, self.locals_b, self.freeze, self.errors = model, locals_b, freeze, errors
        distinct = list({id(local): local for local in locals_b}.values())
        number = {id(local): i for i, local in enumerate(distinct)}
        self.prompts = PaddedPrompts(distinct, [number[id(local)] for local in locals_b], side)
        self.edits = EditTable(edits_b, model.transcoders.reader.n_features, model.device)

    def outcomes(self, positions: Sequence[int], read_features: Tensor | None) -> list[Outcome]:
        with float32_arithmetic():
            result = self._run()
            return self._read(result, positions, read_features)

    def _run(self) -> PassResult:
        recomputed = isinstance(self.errors, str) and self.errors == "recomputed"
        # Without its token a position's residual stream is zero at first, and a norm divides by √ε alone: a change carried
        # beside what was there would leave rounding made a thousand times larger, norm after norm.
        vanishes = not self.freeze.norms and any(edit.tokens for edit in self.edits.edits)
        if self.freeze.attention and not recomputed and not vanishes:
            return frozen_pass(self.prompts, self.edits, self.freeze, self._error_change)
        sites, prompts = self.model.sites, self.prompts
        errors: Errors = self.errors if isinstance(self.errors, str) else "frozen"
        passing = HookedPass(sites, self.model.transcoders, self.freeze, errors)
        passing.begin(self.edits, prompts.window, prompts, self._error_change)
        embedded_bwd = passing.embedded(prompts.stack(lambda m: m.residuals_lpd[0]))
        positions_bw = torch.arange(prompts.width, device=self.model.device) - prompts.shift_b[:, None]
        with hooked(passing.hooks()):
            sites.text_model(
                inputs_embeds=embedded_bwd,
                attention_mask=prompts.real_bw.long(),
                position_ids=positions_bw.clamp(min=0),
                use_cache=False,
            )
        return passing.result

    def _error_change(self, layer: int) -> Tensor:
        """(B, W, D) what is added to the unchanged prompts' errors of a layer."""
        prompts = self.prompts
        if isinstance(self.errors, Tensor):
            wanted_lpd = self.errors.to(self.model.device)
            change_bwd = prompts.stack(lambda m: _fitting(wanted_lpd, m)[layer] - m.errors_lpd[layer])
        elif self.errors == "dropped":
            change_bwd = prompts.stack(lambda m: -m.errors_lpd[layer])
        else:
            change_bwd = torch.zeros(
                prompts.n_rows, prompts.width, self.model.description.d_model, device=self.model.device
            )
        for row, edit in enumerate(self.edits.edits):
            prompt = int(prompts.prompt_of_b[row]) if edit.errors else 0
            for (at, position), factor in edit.errors.items():
                if at == layer:
                    vector_d = prompts.locals_g[prompt].errors_lpd[layer, position]
                    change_bwd[row, prompts.slots(prompt).start + position] += (factor - 1) * vector_d
        return change_bwd

    def _read(self, result: PassResult, positions: Sequence[int], read_features: Tensor | None) -> list[Outcome]:
        features = torch.empty(0, 3, dtype=torch.int64) if read_features is None else read_features.cpu()
        before_gt, changes_bt = self._preactivations(result, features)
        prompts, outcomes = self.prompts, []
        wanted = [[_position(position, local) for position in positions] for local in prompts.locals_g]
        before_gqv = [
            torch.stack([local.logits(position) for position in places])
            for local, places in zip(prompts.locals_g, wanted, strict=True)
        ]
        for row, prompt in enumerate(prompts.prompt_of_b.tolist()):
            index = torch.tensor(wanted[prompt], device=self.model.device) + prompts.slots(prompt).start
            if result.normed_change_bwd is not None:
                changes_qv = self.model.sites.unembed(result.normed_change_bwd[row, index])
                logits_qv = before_gqv[prompt] + changes_qv
            else:
                assert result.normed_bwd is not None
                logits_qv = self.model.sites.unembed(result.normed_bwd[row, index])
                changes_qv = logits_qv - before_gqv[prompt]
            after_t = before_gt[prompt] + changes_bt[row]
            slot = row * prompts.width + prompts.slots(prompt).start
            activations = partial(row_activations, result.features, slot, prompts.locals_g[prompt].n_positions)
            outcomes.append(Outcome(logits_qv, changes_qv, after_t, changes_bt[row], activations))
        return outcomes

    def _preactivations(self, result: PassResult, features_t3: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-activations asked for in the unchanged prompts (G, T), and their changes (B, T)."""
        prompts, device = self.prompts, self.model.device
        before_gt = torch.zeros(len(prompts.locals_g), len(features_t3), device=device)
        changes_bt = torch.zeros(prompts.n_rows, len(features_t3), device=device)
        rows = torch.arange(prompts.n_rows, device=device)[:, None]
        for layer in features_t3[:, 0].unique().tolist():
            here = (features_t3[:, 0] == layer).nonzero().flatten()
            _, positions_t, columns_t = features_t3[here].to(device).unbind(1)
            here = here.to(device)
            # Negative positions count from each prompt's own end.
            lengths_g1 = torch.tensor([[local.n_positions] for local in prompts.locals_g], device=device)
            positions_gt = positions_t.remainder(lengths_g1)
            encoder = self.model.transcoders.encoder(layer)
            columns_dt = encoder.w_enc_df[:, columns_t].float()
            inputs_btd = result.input_changes[layer][rows, prompts.shift_b[:, None] + positions_gt[prompts.prompt_of_b]]
            changes_bt[:, here] = torch.einsum("btd,dt->bt", inputs_btd, columns_dt)
            for prompt, local in enumerate(prompts.locals_g):
                inputs_td = (local.layers[layer].mlp_norm[:] * local.mids_lpd[layer])[positions_gt[prompt]]
                before_gt[prompt, here] = (inputs_td * columns_dt.T).sum(-1) + encoder.b_enc_f[columns_t]
        return before_gt, changes_bt


def _fitting(errors_lpd: Tensor, local: LocalReplacementModel) -> Tensor:
    if errors_lpd.shape != local.errors_lpd.shape:
        raise ValueError(f"errors have shape {tuple(errors_lpd.shape)}; expected {tuple(local.errors_lpd.shape)}")
    return errors_lpd


def _position(position: int, local: LocalReplacementModel) -> int:
    if not -local.n_positions <= position < local.n_positions:
        raise ValueError(f"position {position} is outside the prompt; it has positions 0 to {local.n_positions - 1}")
    return position % local.n_positions
