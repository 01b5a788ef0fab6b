"""Virtual weights in float64, by matrices of whole paths: nothing is streamed, nothing is shared with the code tested."""

from __future__ import annotations

import torch
from torch import Tensor

from crosstrace.replacement_model import ReplacementModel, Site


def dense_weights(model: ReplacementModel, inverse_rms_l3: Tensor, head: tuple[int, int] | None = None) -> Tensor:
    """(N, N) float64 [target, source] over all features, through the residual stream or through one head."""
    used, size = model.transcoders, model.description
    n_layers, d_model, width = size.n_layers, size.d_model, size.head_dim
    identity = torch.eye(d_model, dtype=torch.float64)
    inverse = inverse_rms_l3.double()

    def gain(norm) -> Tensor:
        return model.sites.gain(norm).double()

    reads, past, attend = [], [], {}
    for layer, sites in enumerate(model.sites.layers):
        raw = used.reads is Site.MLP_INPUT
        read_d = torch.ones(d_model).double() if raw else gain(sites.pre_feedforward_norm) * inverse[layer, 2]
        reads.append(read_d)
        skip = used.reader.skip(layer)
        past.append(identity if skip is None else identity + torch.diag(read_d) @ skip.double())
        for number in range(size.n_heads):
            kv = number * size.n_kv_heads // size.n_heads
            value = sites.value_weight().double()[kv * width : (kv + 1) * width]
            output = sites.output_weight().double()[:, number * width : (number + 1) * width]
            before = torch.diag(gain(sites.input_norm) * inverse[layer, 0])
            after = torch.diag(gain(sites.post_attention_norm) * inverse[layer, 1])
            attend[layer, number] = before @ value.T @ output.T @ after  # of row vectors

    counts = [used.n_features[layer] for layer in range(n_layers)]
    firsts = [sum(counts[:layer]) for layer in range(n_layers + 1)]
    out = torch.zeros(firsts[-1], firsts[-1], dtype=torch.float64)
    for source in range(n_layers):
        decoder = used.reader.decoder(source).double()
        for target in range(source + 1, n_layers):
            total = torch.zeros(counts[source], d_model, dtype=torch.float64)
            for j in range(decoder.shape[1]):
                written, path = source + j, identity
                if written >= target or (head is not None and not written < head[0] <= target):
                    continue
                for layer in range(written + 1, target + 1):
                    if head is not None and layer == head[0]:
                        path = path @ attend[head]
                    if layer < target:
                        path = path @ past[layer]
                total += decoder[:, j] @ path
            encoder = used.reader.encoder(target).w_enc_df.double()
            block = (total * reads[target]) @ encoder
            out[firsts[target] : firsts[target + 1], firsts[source] : firsts[source + 1]] = block.T
    return out


def dense_statistics(model: ReplacementModel, contexts: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Activations (positions, N) float64 by tracing each context alone; sums of a · a' and counts of both active (N, N)."""
    counts = [model.transcoders.n_features[layer] for layer in range(model.description.n_layers)]
    firsts = torch.tensor([0, *counts]).cumsum(0)
    rows = []
    for tokens in contexts:
        active = model.local(tokens).activations
        layers, positions, features = active.indices.T
        dense = torch.zeros(len(tokens), int(firsts[-1]), dtype=torch.float64)
        dense[positions, firsts[layers] + features] = active.values.double()
        rows.append(dense[model.description.excluded_first :])
    acts = torch.cat(rows).clamp(min=0)
    fires = (acts > 0).double()
    return acts, acts.T @ acts, fires.T @ fires
