"""The plain reference: the linear model in float64, every source injected, every target read. No adjoint anywhere.

Letters: S sources, P positions, D d_model, H heads, K kv heads, L layers, F features of a layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, Gemma3ForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.dictionaries.readers import TranscoderReader


def _softmax(x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """`softmax` in the dtype of its input: transformers goes through float32."""
    return x.softmax(dim)


def _norm(self: Gemma3RMSNorm, x: Tensor) -> Tensor:
    """Gemma's norm in the dtype of its input, likewise."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


class LinearModel:
    """The model frozen after one forward pass of `transformers`' own; all weights are rounded to a dtype first."""

    def __init__(self, model: Path, reader: TranscoderReader, ids: list[int], dtype: torch.dtype, excluded: int = 1):
        self.reader, self.excluded = reader, excluded
        config = AutoConfig.from_pretrained(model)
        gemma = Gemma3ForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="eager").eval()
        embedded = gemma.model.embed_tokens(torch.tensor(ids)).detach().double()
        gemma.model.layers.double()  # not the vocabulary: in float64 it would take most of the memory
        gemma.model.norm.double()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        seen: dict[str, list[Tensor]] = {"in": [], "attended": [], "mid": [], "mlp": [], "pattern": [], "final": []}
        handles = []

        def keep(module: torch.nn.Module, name: str, of_input: bool) -> None:
            def hook(_module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                seen[name].append((args[0] if of_input else output)[0].detach())

            handles.append(module.register_forward_hook(hook))

        for layer in gemma.model.layers:
            keep(layer.input_layernorm, "in", True)
            keep(layer.post_attention_layernorm, "attended", True)
            keep(layer.pre_feedforward_layernorm, "mid", True)
            keep(layer.post_feedforward_layernorm, "mlp", False)
            handles.append(
                layer.self_attn.register_forward_hook(
                    lambda _m, _a, output: seen["pattern"].append(output[1][0].double())
                )
            )
        keep(gemma.model.norm, "final", True)
        with torch.no_grad(), patch.object(F, "softmax", _softmax), patch.object(Gemma3RMSNorm, "forward", _norm):
            gemma.model(inputs_embeds=embedded[None], use_cache=False)

        def scale(norm: torch.nn.Module, x: Tensor) -> Tensor:
            return (1 + norm.weight.detach()) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps)

        layers = gemma.model.layers
        self.n_layers, self.n_positions = len(layers), len(ids)
        self.into = [scale(layer.input_layernorm, x) for layer, x in zip(layers, seen["in"], strict=True)]
        self.after = [
            scale(layer.post_attention_layernorm, x) for layer, x in zip(layers, seen["attended"], strict=True)
        ]
        self.mlp_in = [scale(layer.pre_feedforward_layernorm, x) for layer, x in zip(layers, seen["mid"], strict=True)]
        if reader.reads is Site.MLP_INPUT:
            self.mlp_in = [torch.ones_like(x) for x in self.mlp_in]
        self.final_scale, self.final = scale(gemma.model.norm, seen["final"][0]), seen["final"][0]
        self.patterns = seen["pattern"]
        self.w_v = [layer.self_attn.v_proj.weight.detach() for layer in layers]
        self.w_o = [layer.self_attn.o_proj.weight.detach() for layer in layers]
        self.w_u = gemma.lm_head.weight.detach()
        self.mean_w_u = sum(rows.double().sum(0) for rows in self.w_u.split(1 << 14)) / len(self.w_u)
        encoders = [reader.encoder(layer) for layer in range(self.n_layers)]
        self.w_enc = [encoder.w_enc_df.to(dtype).double() for encoder in encoders]
        self.b_enc = [encoder.b_enc_f.double() for encoder in encoders]
        self.threshold = [encoder.threshold_f.double() for encoder in encoders]
        self.skips = [
            None if (skip := reader.skip(layer)) is None else skip.to(dtype).double() for layer in range(self.n_layers)
        ]
        self.dtype, self.embedded = dtype, embedded
        self._features(seen["mid"], seen["mlp"])

    def _features(self, mids: list[Tensor], outputs: list[Tensor]) -> None:
        """Find the active features, and the errors that their vectors leave."""
        self.active: list[tuple[int, int, int]] = []
        self.activations: list[float] = []
        left = torch.stack(outputs).clone()
        for layer in range(self.n_layers):
            u = self.mlp_in[layer] * mids[layer]
            h = u @ self.w_enc[layer] + self.b_enc[layer]
            h[: self.excluded] = -torch.inf
            active = h > self.threshold[layer]
            a = h.where(active, 0)
            fired = active.any(0).nonzero().flatten()
            rows = self.reader.decoder_rows(layer, fired).to(self.dtype).double()
            left[layer : layer + rows.shape[1]] -= torch.einsum("pf,fld->lpd", a[:, fired], rows)
            self.active += [(layer, position, feature) for position, feature in active.nonzero().tolist()]
            self.activations += h[active].tolist()
            if (skip := self.skips[layer]) is not None:
                left[layer] -= u @ skip
            left[layer] -= self.reader.bias(layer).double()
        left[:, : self.excluded] = 0
        self.errors_lpd = left

    def _writes(self, source: int) -> list[tuple[int, int, Tensor]]:
        """What a source writes: (layer, position, vector); a token writes below layer 0."""
        n_features = len(self.active)
        if source < n_features:
            layer, position, feature = self.active[source]
            rows = self.reader.decoder_rows(layer, torch.tensor([feature]))[0].to(self.dtype).double()
            return [(layer + i, position, self.activations[source] * row) for i, row in enumerate(rows)]
        layer, position = divmod(source - n_features, self.n_positions)
        if layer < self.n_layers:
            return [(layer, position, self.errors_lpd[layer, position])]
        return [(-1, position, self.embedded[position])]

    def adjacency(self, logit_tokens: list[int]) -> Tensor:
        """Return the adjacency (n, n) float64 in the graph's node order."""
        n_sources = len(self.active) + (self.n_layers + 1) * self.n_positions
        edges = self.columns(list(range(n_sources)), logit_tokens)
        return torch.cat([edges, torch.zeros(len(edges), len(logit_tokens), dtype=edges.dtype)], dim=1)

    def columns(self, sources: list[int], logit_tokens: list[int]) -> Tensor:
        """Return the edges (n, S) float64 of some sources, by their numbers among the nodes, to every node."""
        n_sources = len(self.active) + (self.n_layers + 1) * self.n_positions
        writes: list[list[tuple[int, int, Tensor]]] = [[] for _ in range(self.n_layers + 1)]
        for i, source in enumerate(sources):
            for layer, position, vector in self._writes(source):
                writes[layer].append((i, position, vector))
        stream = torch.zeros(len(sources), self.n_positions, self.final.shape[-1], dtype=torch.float64)
        out = torch.zeros(n_sources + len(logit_tokens), len(sources), dtype=torch.float64)
        layers, positions, features = torch.tensor(self.active).reshape(-1, 3).T
        for i, position, vector in writes[-1]:
            stream[i, position] += vector
        for layer in range(self.n_layers):
            stream = stream + self._attend(layer, stream)
            u = self.mlp_in[layer] * stream
            here = layers == layer
            h_spf = u @ self.w_enc[layer]  # of all features, active or not
            out[: len(self.active)][here] = h_spf[:, positions[here], features[here]].T
            if (skip := self.skips[layer]) is not None:
                stream += u @ skip
            for i, position, vector in writes[layer]:
                stream[i, position] += vector
        read = self.final_scale[-1] * stream[:, -1]
        out[n_sources:] = (self.w_u[logit_tokens].double() - self.mean_w_u) @ read.T
        return out

    def _attend(self, layer: int, stream: Tensor) -> Tensor:
        scaled = self.into[layer] * stream
        values = (scaled @ self.w_v[layer].T).unflatten(-1, (self.kv_heads, -1))
        values = values.repeat_interleave(self.heads // self.kv_heads, dim=2)
        mixed = torch.einsum("hqk,skhw->sqhw", self.patterns[layer], values).flatten(2)
        return self.after[layer] * (mixed @ self.w_o[layer].T)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the relative Frobenius norm of the difference."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


class WithoutHead(LinearModel):
    """The plain reference, in which one head writes nothing."""

    dropped: tuple[int, int] | None = None

    def _attend(self, layer, stream):
        patterns = self.patterns[layer]
        if self.dropped is not None and self.dropped[0] == layer:
            self.patterns[layer] = patterns.clone()
            self.patterns[layer][self.dropped[1]] = 0
        written = super()._attend(layer, stream)
        self.patterns[layer] = patterns
        return written
