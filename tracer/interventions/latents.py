"""Latents of SAEs in interventions: their decoders are directions to steer along."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crosstrace.replacement_model import Add, DirectionAt, Intervention, LoadedModel
from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.dictionaries.latents import parse_latent, sae_of
from crosstrace.replacement_model.dictionaries.saes import Saes
from crosstrace.replacement_model.interventions.references import name_and_positions, parse_positions


def with_latents(interventions: Sequence[Intervention], model: LoadedModel, saes: Sequence[Saes]) -> list[Intervention]:
    """Replace references to latents, such as `resid_post/12/417@7`, by the directions that their decoders write.

    Args:
        interventions: As `parse_intervention` reads them; those on anything else stay as they are.
        model: The model.
        saes: The SAEs that the latents are of.

    Returns:
        The interventions in the same order, one for each depth that a crosscoder's latent writes to.

    Raises:
        ValueError: There is no such latent, or it writes to a place from which the MLP of the layer still reads.
    """
    replaced: list[Intervention] = []
    for intervention in interventions:
        where = intervention.where
        name, at = name_and_positions(where) if isinstance(where, str) else ("", None)
        latent = parse_latent(name) if isinstance(where, str) and not where.strip().startswith('"') else None
        if latent is not None:
            sae = sae_of(latent, saes)
            if latent.site not in (Site.RESIDUAL, Site.MLP_OUTPUT):
                raise ValueError(
                    f"{latent}: steering takes latents of resid_post and mlp_out, which write after the MLP"
                )
            [rows_jd] = sae.decoder_rows(latent.layer, torch.tensor([latent.feature], device=sae.device)).float()
            positions = None if at is None else parse_positions(at)
            # A crosscoder's latent writes the residual stream itself at each depth: what a depth adds to the one before.
            steps_jd = rows_jd.diff(dim=0, prepend=torch.zeros_like(rows_jd[:1]))
            for layer, vector_d in zip(sae.reader.written_layers(latent.layer), steps_jd, strict=True):
                direction = DirectionAt(str(latent), layer, vector_d, positions)
                if not isinstance(intervention, Add):
                    raise ValueError(
                        f"{direction}: a direction can be added to, not {type(intervention).__name__.lower()}"
                    )
                replaced.append(Add(direction, intervention.amount))
        else:
            replaced.append(intervention)
    return replaced
