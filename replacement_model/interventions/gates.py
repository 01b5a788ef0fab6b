"""Which features are active once a pass has changed what their transcoders read.

A feature fires where its pre-activation exceeds its threshold, so that one that sits at its threshold can be flipped by
rounding alone: by another order of sums, another batch, another padding. A flip is therefore taken only where the change
of the feature's own input accounts for it; every other feature keeps the gate of the unchanged prompt.

Letters: B rows, W positions of a row, X = B * W flattened, D d_model, n entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crosstrace.replacement_model.dictionaries.base import ActivationKind
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.interventions.edited_features import Entries, PassWindow

# What two forward passes of one prompt differ by in float32, relative to the norm of what is read.
ROUNDING_OF_A_PASS = 1e-5
# Encoder columns gathered at a time, in bytes.
_COLUMN_BYTES = 64 * 2**20


def encode_changed(
    transcoders: Transcoders, layer: int, window: PassWindow, held: Entries, base_bwd: Tensor, change_bwd: Tensor
) -> Entries:
    """Encode what a layer's transcoder reads after a change that is known by itself.

    Where nothing changed, activations are those of the unchanged prompt to the bit, and nothing is computed.

    Args:
        transcoders: The transcoders.
        layer: The layer.
        window: The positions that the pass covers.
        held: The activations of the unchanged prompts.
        base_bwd: (B, W, D) float32, what the transcoder reads in the unchanged prompts.
        change_bwd: (B, W, D) float32, its change; zero where there is none.
    """
    base_xd, change_xd = base_bwd.flatten(0, 1), change_bwd.flatten(0, 1)
    changed_x = (change_xd != 0).any(-1)
    places = window.live[changed_x[window.live]]
    if not len(places):
        return held
    rows, features, values = transcoders.encode(layer, base_xd[places] + change_xd[places], 0)
    own = joined(
        held.part(~changed_x[held.where]), Entries(places[rows], features, values), transcoders.reader.n_features[layer]
    )
    return keep_gates(transcoders, layer, own, held, base_xd, change_xd)


def keep_gates(
    transcoders: Transcoders,
    layer: int,
    own: Entries,
    held: Entries,
    base_xd: Tensor,
    change_xd: Tensor,
    rounding: float = 0.0,
) -> Entries:
    """Undo flips that the change of a feature's input does not account for.

    A feature that was active stays active unless its unchanged pre-activation plus the change is at or below its
    threshold, and one that was not stays inactive unless it is above; a change within `rounding` is none. With TopK,
    where a feature also gives way to others, positions whose input did not change keep all of their gates.

    Args:
        transcoders: The transcoders.
        layer: The layer.
        own: The activations as a pass computed them.
        held: The activations of the unchanged prompts.
        base_xd: (X, D) float32, what the transcoder reads in the unchanged prompts.
        change_xd: (X, D) float32, its change.
        rounding: How much of the input's norm the change may be off by.
    """
    n_features = transcoders.reader.n_features[layer]
    if transcoders.reader.activation.kind is ActivationKind.TOP_K:
        same_x = change_xd.norm(dim=-1) <= rounding * base_xd.norm(dim=-1)
        return joined(held.part(same_x[held.where]), own.part(~same_x[own.where]), n_features)
    flipped_on, flipped_off = flips(own, held, n_features)
    off = held.part(flipped_off)
    now_on, _ = _crossing(transcoders, layer, own.part(flipped_on), base_xd, change_xd, rounding, was_active=False)
    now_off, change_n = _crossing(transcoders, layer, off, base_xd, change_xd, rounding, was_active=True)
    kept = torch.ones_like(flipped_on)
    kept[flipped_on] = now_on
    stays = Entries(off.where[~now_off], off.features[~now_off], off.values[~now_off] + change_n[~now_off])
    return joined(own.part(kept), stays, n_features)


def flips(own: Entries, held: Entries, n_features: int) -> tuple[Tensor, Tensor]:
    """Say which entries of `own` are not in `held`, and which of `held` are not in `own`: two bool masks."""
    own_keys, held_keys = own.keys(n_features), held.keys(n_features)
    return ~torch.isin(own_keys, held_keys), ~torch.isin(held_keys, own_keys)


def count_flips(own: Entries, held: Entries, n_features: int, n_rows: int, width: int) -> Tensor:
    """Count each row's features that became active, and those that became inactive: (B, 2) int64."""
    on, off = flips(own, held, n_features)
    counts = [torch.bincount(where // width, minlength=n_rows) for where in (own.where[on], held.where[off])]
    return torch.stack(counts, dim=1)


def joined(one: Entries, other: Entries, n_features: int) -> Entries:
    """Put together entries that have no place in common."""
    keys, order = torch.cat([one.keys(n_features), other.keys(n_features)]).sort()
    return Entries.from_keys(keys, torch.cat([one.values, other.values])[order], n_features)


def _crossing(
    transcoders: Transcoders,
    layer: int,
    entries: Entries,
    base_xd: Tensor,
    change_xd: Tensor,
    rounding: float,
    was_active: bool,
) -> tuple[Tensor, Tensor]:
    """Say for features that seem to have flipped whether they did (n,), and how far their input moved them (n,) float32.

    The unchanged gate is a fact, whatever rounding made of it: the unchanged pre-activation is taken to be on its side of
    the threshold.
    """
    encoder = transcoders.encoder(layer)
    crossed, moved = [], []
    at_a_time = max(1, _COLUMN_BYTES // (8 * 3 * base_xd.shape[-1]))
    for start in range(0, len(entries.where), at_a_time):
        part = slice(start, start + at_a_time)
        where, features = entries.where[part], entries.features[part]
        columns_nd = encoder.w_enc_df[:, features].T.double()
        base_nd = base_xd[where].double()
        threshold_n = encoder.threshold_f[features].double()
        before_n = (base_nd * columns_nd).sum(-1) + encoder.b_enc_f[features].double()
        change_n = (change_xd[where].double() * columns_nd).sum(-1)
        change_n[change_n.abs() <= rounding * base_nd.norm(dim=-1) * columns_nd.norm(dim=-1)] = 0
        before_n = before_n.clamp(min=threshold_n) if was_active else before_n.clamp(max=threshold_n)
        towards_n = change_n < 0 if was_active else change_n > 0
        active_n = before_n + change_n > threshold_n
        crossed.append(towards_n & (active_n != was_active))
        moved.append(change_n.float())
    if not crossed:
        none = torch.zeros(0, device=base_xd.device)
        return none.bool(), none
    return torch.cat(crossed), torch.cat(moved)
