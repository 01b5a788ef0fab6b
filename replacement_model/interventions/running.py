"""Prompts under interventions: one forward pass each, or many in one.

Ameisen et al. 2025, "Circuit Tracing", section "Validating Attribution Graph Hypotheses with Interventions". Deviations:
skip connections of affine transcoders stay live where features are held, as in the linear model of the graph; and errors
can be frozen, recomputed by the model's own MLPs (the paper's perturbation experiments), dropped or replaced.

Letters: B rows of a batch, P positions of a prompt, L layers, D d_model, T features whose pre-activations are read.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from crosstrace.replacement_model.architectures.float32 import float32_arithmetic
from crosstrace.replacement_model.interventions.edited_features import EditTable
from crosstrace.replacement_model.interventions.edits import Edits, resolve
from crosstrace.replacement_model.interventions.freeze import Errors, Freeze
from crosstrace.replacement_model.interventions.frozen_pass import PassResult, frozen_pass
from crosstrace.replacement_model.interventions.held_errors import HeldErrors
from crosstrace.replacement_model.interventions.hooked_pass import hooked_pass
from crosstrace.replacement_model.interventions.kinds import Intervention
from crosstrace.replacement_model.interventions.outcomes import Outcome, check_read, read_outcomes
from crosstrace.replacement_model.interventions.padded_prompts import PaddedPrompts, Side
from crosstrace.replacement_model.local.local_model import LocalReplacementModel
from crosstrace.replacement_model.local.running_model import RunningModel
from crosstrace.replacement_model.prompts import Prompt

# A batch holds as many rows as keep the largest tensors of a pass within this.
_BATCH_BYTES = 512 * 2**20

Run = tuple[Prompt | LocalReplacementModel, Sequence[Intervention]]


def intervene(
    model: RunningModel,
    prompt: Prompt | LocalReplacementModel,
    interventions: Sequence[Intervention],
    freeze: Freeze | str = "iterative",
    errors: Errors | Tensor = "frozen",
    positions: Sequence[int] = (-1,),
    read_features: Tensor | None = None,
) -> Outcome:
    """Run one prompt under interventions.

    Args:
        model: The replacement model.
        prompt: A text, token ids, or the prompt's local replacement model.
        interventions: What to change; an empty list gives the unchanged model.
        freeze: What is held at the prompt's own values; see `intervene_batch`.
        errors: How errors are treated; see `intervene_batch`.
        positions: Positions whose logits are returned; negative ones count from the prompt's end.
        read_features: (T, 3) int64 rows (layer, position, feature) whose pre-activations are returned.

    Returns:
        The outcome, with logits at the Q positions and pre-activations of the T features.

    Raises:
        ValueError: The prompt, an intervention, a setting or a place to read is not valid, or interventions contradict
            each other; one line that names it.

    Example:
        >>> model = ReplacementModel.demo()
        >>> prompt = "The capital of the state containing Dallas is"
        >>> outcome = intervene(model, prompt, [Ablate("Texas")])
        >>> model.token_strings(outcome.logits_v.topk(3).indices)
    """
    return intervene_batch(model, [(prompt, interventions)], freeze, errors, positions, read_features)[0]


def intervene_batch(
    model: RunningModel,
    runs: Sequence[Run],
    freeze: Freeze | str = "iterative",
    errors: Errors | Tensor = "frozen",
    positions: Sequence[int] = (-1,),
    read_features: Tensor | None = None,
    padding_side: Side = "right",
    batch_size: int | None = None,
) -> list[Outcome]:
    """Run prompts under interventions, many in one forward pass.

    Without interventions, frozen and recomputed errors both give the unchanged model.

    Args:
        model: The replacement model.
        runs: Pairs of a prompt and its interventions. Each distinct prompt is run through the unchanged model once; give
            its local replacement model (`model.local(prompt)`) if it is at hand.
        freeze: What is held at the prompt's own values: `"direct"`, `"constrained:LAYER"`, `"iterative"`, or a `Freeze`
            with more choices.
        errors: What becomes of the part of the MLP outputs that transcoders miss: `"frozen"` at the unchanged prompt's
            vectors, `"recomputed"` (the model's own MLPs run, and changes of features are added to their output),
            `"dropped"`, or vectors (L, P, D) float32 to replace them.
        positions: Positions whose logits are returned; negative ones count from each prompt's end.
        read_features: (T, 3) int64 rows (layer, position, feature) whose pre-activations are returned; negative
            positions count from each prompt's end.
        padding_side: Where shorter prompts of a batch are padded; it changes nothing but the layout in memory.
        batch_size: The number of runs in one pass; None chooses by memory. The result does not depend on it.

    Returns:
        An outcome per run, in order.

    Raises:
        ValueError: A prompt, an intervention, a setting or a place to read is not valid, or interventions contradict
            each other; one line that names it.

    Example:
        >>> local = model.local("The capital of the state containing Dallas is")
        >>> runs = [(local, [Scale("Texas", factor)]) for factor in (0.0, 0.5, 2.0)]
        >>> [outcome.logits_v.argmax() for outcome in intervene_batch(model, runs)]
    """
    freeze, held = Freeze.parse(freeze), HeldErrors.parse(errors)
    freeze.check_layers(model.description.n_layers)
    held.check_freeze(freeze)
    if not len(positions):
        raise ValueError("positions are empty; give those whose logits you want, such as (-1,)")
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
    held.check_edits(edits_b)
    for local in {id(local): local for local in locals_b}.values():
        check_read(read_features, local)
        held.check_prompt(local)
    at_a_time = batch_size or max(1, _BATCH_BYTES // max(_row_bytes(local, len(positions)) for local in locals_b))
    outcomes: list[Outcome] = []
    for start in range(0, len(runs), at_a_time):
        part = slice(start, start + at_a_time)
        prompts = _side_by_side(locals_b[part], padding_side)
        with float32_arithmetic():
            result = _run(model, prompts, edits_b[part], freeze, held)
            outcomes += read_outcomes(model, prompts, result, positions, read_features)
    return outcomes


def _row_bytes(local: LocalReplacementModel, n_read: int) -> int:
    """Estimate the memory of a row: writes to every layer, attention, some copies of the stream and of the logits."""
    size = local.description
    per_position = size.d_model * (size.n_layers + 12) + local.n_positions * size.n_heads * 2
    return 4 * (local.n_positions * per_position + 3 * n_read * size.vocab_size)


def _side_by_side(locals_b: Sequence[LocalReplacementModel], side: Side) -> PaddedPrompts:
    distinct = list({id(local): local for local in locals_b}.values())
    number = {id(local): i for i, local in enumerate(distinct)}
    return PaddedPrompts(distinct, [number[id(local)] for local in locals_b], side)


def _run(
    model: RunningModel, prompts: PaddedPrompts, edits_b: Sequence[Edits], freeze: Freeze, errors: HeldErrors
) -> PassResult:
    table = EditTable(edits_b, model.transcoders.reader.n_features, model.device)
    # Without its token a position's residual stream starts at zero, and a norm divides by √ε alone: carrying the change
    # beside the unchanged stream would magnify rounding a thousandfold, norm after norm.
    vanishes = not freeze.norms and any(edits.tokens for edits in edits_b)
    if freeze.attention and errors.kind != "recomputed" and not vanishes:
        return frozen_pass(prompts, table, freeze, errors)
    return hooked_pass(model, prompts, table, freeze, errors)
