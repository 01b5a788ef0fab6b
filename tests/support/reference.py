"""The plain reference: the linear model in float64, every source injected, every target read. No adjoint anywhere.

Letters: S sources, P positions, D d_model, H heads, K kv heads, L layers, N active features.
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
        gemma = gemma.double()
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
        """Find the active features, their vectors into every layer, and the errors that remain."""
        self.active: list[tuple[int, int, int]] = []
        self.activations: list[float] = []
        vectors = []
        left = torch.stack(outputs).clone()
        for layer in range(self.n_layers):
            u = self.mlp_in[layer] * mids[layer]
            h = u @ self.w_enc[layer] + self.b_enc[layer]
            h[: self.excluded] = -torch.inf
            for position, feature in (h > self.threshold[layer]).nonzero().tolist():
                rows = self.reader.decoder_rows(layer, torch.tensor([feature]))[0].to(self.dtype).double()
                vector = torch.zeros_like(left[:, 0])
                vector[layer : layer + len(rows)] = h[position, feature] * rows
                self.active.append((layer, position, feature))
                self.activations.append(h[position, feature].item())
                vectors.append(vector)
                left[:, position] -= vector
            if (skip := self.skips[layer]) is not None:
                left[layer] -= u @ skip
            left[layer] -= self.reader.bias(layer).double()
        left[:, : self.excluded] = 0
        self.vectors_nld, self.errors_lpd = torch.stack(vectors), left

    def adjacency(self, logit_tokens: list[int]) -> Tensor:
        """Return the adjacency (n, n) float64 in the graph's node order."""
        n_features, n_errors = len(self.active), self.n_layers * self.n_positions
        n_sources = n_features + n_errors + self.n_positions
        writes = torch.zeros(n_sources, self.n_layers, self.n_positions, self.final.shape[-1], dtype=torch.float64)
        stream = torch.zeros(n_sources, self.n_positions, self.final.shape[-1], dtype=torch.float64)
        for i, (_, position, _) in enumerate(self.active):
            writes[i, :, position] = self.vectors_nld[i]
        for layer in range(self.n_layers):
            for position in range(self.n_positions):
                i = n_features + layer * self.n_positions + position
                writes[i, layer, position] = self.errors_lpd[layer, position]
        for position in range(self.n_positions):
            stream[n_features + n_errors + position, position] = self.embedded[position]
        n = n_sources + len(logit_tokens)
        out = torch.zeros(n, n, dtype=torch.float64)
        for layer in range(self.n_layers):
            mid = stream + self._attend(layer, stream)
            u = self.mlp_in[layer] * mid
            for i, (of_layer, position, feature) in enumerate(self.active):
                if of_layer == layer:
                    out[i, :n_sources] = u[:, position] @ self.w_enc[layer][:, feature]
            skip = self.skips[layer]
            stream = mid + writes[:, layer] + (0 if skip is None else u @ skip)
        read = self.final_scale[-1] * stream[:, -1]
        centred = self.w_u[logit_tokens] - self.w_u.mean(0)
        out[n_sources:, :n_sources] = centred @ read.T
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
