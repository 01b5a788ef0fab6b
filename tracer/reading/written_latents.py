"""Which latents of SAEs the features of a graph write to: the inner products of their decoders and the latents' encoders.

A feature adds its decoder to the residual stream, so a unit of its activation moves the pre-activation of a latent that reads
the stream after layer m by `Σ_{l ≤ m} ⟨W_dec[l], W_enc⟩`, over the layers l that it writes to; a latent of an MLP's output
meets what is written in its own layer alone. What attention and later layers make of it on the way is left out: this is
the direct part, the same in every prompt (virtual weights, Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits", section on virtual weights).

Letters: n features of a layer, J layers a feature writes to, D d_model, F latents of a layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from crosstrace.graphs import AttributionGraph, prune
from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.dictionaries.base import TokenScaling
from crosstrace.replacement_model.dictionaries.saes import Saes

# Products of features and latents held at a time, in elements.
_AT_A_TIME = 1 << 24


def with_written_latents(
    graph: AttributionGraph, model: ReplacementModel, saes: Sequence[Saes], top: int = 6
) -> AttributionGraph:
    """Return the graph with the latents that its features write to most, for the features that pruning keeps.

    They stand in `graph.settings["latents"]`, by "L3/417", as [latent, effect] from the largest absolute effect down; pages
    show them on the features' cards.

    Args:
        graph: Raw or pruned; in a raw one, the features that the default thresholds would keep are looked at.
        model: The model that the graph was traced in.
        saes: SAEs in use on the same model. Those that read attention's heads are written to by no feature directly; those that
            scale each token before they encode it are left out, since what a feature does to them depends on the token.
        top: How many latents of each SAE and layer to keep.

    Example:
        >>> shown = with_written_latents(prune(trace(model, prompt)), model, [in_use(open_sae("sae"), model.device)])
    """
    pruned = graph if graph.node_mask is not None else prune(graph)
    assert pruned.node_mask is not None
    kept = np.flatnonzero(pruned.node_mask[pruned.layout.features].numpy()).tolist()
    by_layer: dict[int, set[int]] = {}
    for layer, feature in map(pruned.feature_key, kept):
        by_layer.setdefault(layer, set()).add(feature)
    found: dict[str, list[tuple[str, float]]] = {}
    for layer, features in sorted(by_layer.items()):
        features_n = torch.tensor(sorted(features), device=model.device)
        rows_njd = model.transcoders.decoder_rows(layer, features_n).float()
        for sae in saes:
            if sae.reader.token_scaling is not TokenScaling.NONE:
                continue
            for own in sae.layers:
                parts = [_written(rows_njd, layer, sae.reads, read) for read in sae.reader.read_layers(own)]
                if any(part is not None for part in parts):
                    none_nd = torch.zeros_like(rows_njd[:, 0])
                    written_nd = torch.cat([none_nd if part is None else part for part in parts], 1)
                    _add(found, sae, layer, features_n, own, written_nd, top)
    latents = {name: sorted(rows, key=lambda row: (-abs(row[1]), row[0])) for name, rows in found.items()}
    return dataclasses.replace(graph, settings={**graph.settings, "latents": latents})


def _written(rows_njd: Tensor, layer: int, site: Site, read: int) -> Tensor | None:
    """What features of a layer have written (n, D) where an SAE of layer `read` reads; None if that is nothing."""
    last = read - layer
    if last < 0:
        return None
    if site is Site.RESIDUAL:
        return rows_njd[:, : last + 1].sum(1)
    return rows_njd[:, last] if site is Site.MLP_OUTPUT and last < rows_njd.shape[1] else None


def _add(
    found: dict[str, list[tuple[str, float]]],
    sae: Saes,
    layer: int,
    features_n: Tensor,
    read: int,
    written_nd: Tensor,
    top: int,
) -> None:
    w_enc_df = sae.encoder(read).w_enc_df
    at_a_time = max(1, _AT_A_TIME // w_enc_df.shape[1])
    for start in range(0, len(features_n), at_a_time):
        part = slice(start, start + at_a_time)
        effects_nf = written_nd[part] @ w_enc_df.float()
        places_nk = effects_nf.abs().topk(min(top, effects_nf.shape[1]), dim=1).indices
        effects_nk = effects_nf.gather(1, places_nk)
        for feature, places, effects in zip(
            features_n[part].tolist(), places_nk.tolist(), effects_nk.tolist(), strict=True
        ):
            own = found.setdefault(f"L{layer}/{feature}", [])
            own += [
                (f"{sae.reads.short_name}/{read}/{latent}", effect)
                for latent, effect in zip(places, effects, strict=True)
                if effect
            ]
