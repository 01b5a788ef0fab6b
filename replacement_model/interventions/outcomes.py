"""What a pass under interventions returns for each prompt: logits, pre-activations and active features.

Letters: B rows of a batch, G distinct prompts, L layers, D d_model, V vocabulary, Q positions whose logits are read,
T features whose pre-activations are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from crosstrace.kernels import SparseActivations
from crosstrace.replacement_model.interventions.edited_features import row_activations
from crosstrace.replacement_model.interventions.frozen_pass import PassResult
from crosstrace.replacement_model.interventions.padded_prompts import PaddedPrompts
from crosstrace.replacement_model.local.local_model import LocalReplacementModel
from crosstrace.replacement_model.local.running_model import RunningModel


@dataclass(frozen=True)
class Outcome:
    """One prompt under interventions, beside the unchanged prompt.

    Attributes:
        logits_qv: (Q, V) float32 logits at the requested positions.
        logit_changes_qv: (Q, V) float32 their changes against the unchanged prompt.
        preactivations_t: (T,) float32 pre-activations of the requested features: h, before JumpReLU.
        preactivation_changes_t: (T,) float32 their changes against the unchanged prompt.
        became_active: How many features that the unchanged prompt does not have fired because of what reached them.
        became_inactive: How many of the unchanged prompt's features did not fire any more. Neither counts what an
            intervention does to the features that it names.
        read_activations: Gives `activations`.
    """

    logits_qv: Tensor
    logit_changes_qv: Tensor
    preactivations_t: Tensor
    preactivation_changes_t: Tensor
    became_active: int
    became_inactive: int
    read_activations: Callable[[], SparseActivations] = field(repr=False)

    @cached_property
    def activations(self) -> SparseActivations:
        """The active features, those intervened on at the values they were given."""
        return self.read_activations()

    @property
    def logits_v(self) -> Tensor:
        """The logits (V,) at the last requested position."""
        return self.logits_qv[-1]


def check_read(features_t3: Tensor | None, local: LocalReplacementModel) -> None:
    """Check the features whose pre-activations are to be read.

    Args:
        features_t3: (T, 3) integer rows (layer, position, feature), or None.
        local: A prompt they are read in.

    Raises:
        ValueError: The tensor has another shape or dtype, or a layer, position or feature does not exist.
    """
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
                f"read_features: layer {layer} does not exist; the model has layers 0 to {len(n_features) - 1}"
            )
        if not 0 <= feature < n_features[layer]:
            raise ValueError(
                f"read_features: L{layer}/{feature} does not exist; layer {layer} has features 0 to {n_features[layer] - 1}"
            )
        _position(position, local)


def read_outcomes(
    model: RunningModel,
    prompts: PaddedPrompts,
    result: PassResult,
    positions: Sequence[int] = (-1,),
    read_features: Tensor | None = None,
) -> list[Outcome]:
    """Read the outcome of every row of a batch.

    Args:
        model: The replacement model.
        prompts: The B rows.
        result: What the pass computed.
        positions: Positions whose logits are read; negative ones count from each prompt's end.
        read_features: (T, 3) int64 rows (layer, position, feature) whose pre-activations are read.

    Returns:
        An outcome per row.

    Raises:
        ValueError: A position is outside a prompt.
    """
    features_t3 = torch.empty(0, 3, dtype=torch.int64) if read_features is None else read_features.cpu()
    before_gt, changes_bt = _preactivations(model, prompts, result, features_t3)
    wanted = [[_position(position, local) for position in positions] for local in prompts.locals_g]
    before_gqv = [
        local.logits(torch.tensor(places, device=model.device))
        for local, places in zip(prompts.locals_g, wanted, strict=True)
    ]
    flips_b2 = torch.stack(result.flips).sum(0).tolist()
    normed_bwd = result.normed_bwd if result.normed_change_bwd is None else result.normed_change_bwd
    assert normed_bwd is not None
    prompt_of_b = prompts.prompt_of_b.tolist()
    starts_b = [prompts.slots(prompt).start for prompt in prompt_of_b]
    index_bq = torch.tensor([wanted[prompt] for prompt in prompt_of_b], device=model.device)
    index_bq += torch.tensor(starts_b, device=model.device)[:, None]
    # All rows in one product: the unembedding is by far the largest matrix, and each product reads it whole.
    read_bqv = model.sites.unembed(normed_bwd[torch.arange(len(index_bq), device=model.device)[:, None], index_bq])
    outcomes = []
    for row, prompt in enumerate(prompt_of_b):
        if result.normed_change_bwd is not None:
            changes_qv = read_bqv[row]
            logits_qv = before_gqv[prompt] + changes_qv
        else:
            logits_qv = read_bqv[row]
            changes_qv = logits_qv - before_gqv[prompt]
        after_t = before_gt[prompt] + changes_bt[row]
        slot = row * prompts.width + starts_b[row]
        activations = partial(row_activations, result.features, slot, prompts.locals_g[prompt].n_positions)
        became_active, became_inactive = flips_b2[row]
        outcomes.append(
            Outcome(logits_qv, changes_qv, after_t, changes_bt[row], became_active, became_inactive, activations)
        )
    return outcomes


def _preactivations(
    model: RunningModel, prompts: PaddedPrompts, result: PassResult, features_t3: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute pre-activations in the unchanged prompts (G, T), and their changes (B, T)."""
    device = model.device
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
        encoder = model.transcoders.encoder(layer)
        columns_dt = encoder.w_enc_df[:, columns_t].float()
        inputs_btd = result.input_changes[layer][rows, prompts.shift_b[:, None] + positions_gt[prompts.prompt_of_b]]
        changes_bt[:, here] = torch.einsum("btd,dt->bt", inputs_btd, columns_dt)
        for prompt, local in enumerate(prompts.locals_g):
            inputs_td = (local.layers[layer].mlp_norm[:] * local.mids_lpd[layer])[positions_gt[prompt]]
            before_gt[prompt, here] = (inputs_td * columns_dt.T).sum(-1) + encoder.b_enc_f[columns_t]
    return before_gt, changes_bt


def _position(position: int, local: LocalReplacementModel) -> int:
    if not -local.n_positions <= position < local.n_positions:
        raise ValueError(f"position {position} is outside the prompt; it has positions 0 to {local.n_positions - 1}")
    return position % local.n_positions
