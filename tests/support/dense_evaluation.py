"""An evaluation recomputed: dense float64 matrices, one context at a time, the model as `transformers` runs it.

Nothing of the code under test is used for it. Letters: P positions, V vocabulary, F features, D the width of a site.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from crosstrace.replacement_model import BaseModel
from crosstrace.tracer import EvaluationReport

FIGURES = ("layer", "l0", "fvu", "fvu_weighted", "dead", "frequent", "ce_delta")


@dataclass(frozen=True)
class DenseLayer:
    """One layer's weights in float64; `decoders` by the layer that they write to."""

    w_enc: Tensor
    b_enc: Tensor
    threshold: Tensor
    decoders: Mapping[int, Tensor]
    b_dec: Tensor
    skip: Tensor | None = None
    k: int | None = None

    @staticmethod
    def read(path: Path, layer: int, k: int | None = None) -> DenseLayer:
        """Read a file of Gemma Scope 2's layout."""
        stored = {key: tensor.double() for key, tensor in load_file(path).items()}
        w_dec = stored["w_dec"]
        decoders = {layer: w_dec} if w_dec.ndim == 2 else {j: w_dec[:, j] for j in range(layer, w_dec.shape[1])}
        return DenseLayer(
            *(stored[key] for key in ("w_enc", "b_enc", "threshold")),
            decoders,
            stored["b_dec"],
            stored.get("affine_skip_connection"),
            k,
        )

    def activations(self, x_pd: Tensor) -> Tensor:
        h_pf = x_pd @ self.w_enc + self.b_enc
        if self.k is not None:
            return torch.zeros_like(h_pf).scatter(1, (top := h_pf.topk(self.k, dim=1)).indices, top.values)
        return h_pf * (h_pf > self.threshold)

    def affine(self, x_pd: Tensor) -> Tensor:
        return self.b_dec if self.skip is None else self.b_dec + x_pd @ self.skip


class DenseEvaluation:
    """The figures of a dictionary on some contexts."""

    def __init__(self, model: str | Path, layers: Mapping[int, DenseLayer], site: str, excluded: int = 1) -> None:
        """
        Args:
            model: A folder of Hugging Face's layout.
            layers: The dictionary.
            site: `mlp` for transcoders; `resid_post`, `mlp_out` or `attn_out` for SAEs.
            excluded: First positions that keep what the model has and are not counted.
        """
        stored = transformers.AutoModelForCausalLM.from_pretrained(model, dtype="auto", attn_implementation="eager")
        # A token's vector is what the embedding module returns in the stored dtype, its rounding included.
        self.embedding = copy.deepcopy(stored.model.embed_tokens)
        self.model = stored.eval().double()
        self.layers, self.site, self.excluded = layers, site, excluded

    def report(self, contexts: Sequence[Sequence[int]]) -> dict[str, Any]:
        with torch.no_grad():
            return self._report(contexts)

    def _report(self, contexts: Sequence[Sequence[int]]) -> dict[str, Any]:
        wanted: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        made: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        fired: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        losses: dict[Any, list[Tensor]] = {}
        kl, same = [], []
        for context in contexts:
            first, ids = self.excluded, torch.tensor([context])
            inputs: dict[int, Tensor] = {}
            outputs: dict[int, Tensor] = {}

            def read(layer: int, x: Tensor, inputs=inputs) -> None:
                inputs[layer] = x[0].clone()

            def write(layer: int, y: Tensor, outputs=outputs) -> None:
                outputs[layer] = y[0].clone()

            own = self._run(ids, read, write)
            acts = {layer: weights.activations(inputs[layer]) for layer, weights in self.layers.items()}
            clean = {layer: self._reconstruction(layer, acts, inputs) for layer in self.layers}
            for layer in self.layers:
                wanted[layer].append(outputs[layer][first:])
                made[layer].append(clean[layer][first:])
                fired[layer].append(acts[layer][first:] != 0)

            def splice(y: Tensor, new_pd: Tensor) -> Tensor:
                y = y.clone()
                y[0, self.excluded :] = new_pd[self.excluded :]
                return y

            live: dict[int, Tensor] = {}
            live_inputs: dict[int, Tensor] = {}

            def encode(layer: int, x: Tensor, live=live, live_inputs=live_inputs) -> None:
                live_inputs[layer] = x[0].clone()
                live[layer] = self.layers[layer].activations(x[0])

            runs: dict[Any, Tensor] = {
                "model": own,
                "replaced": self._run(
                    ids,
                    encode,
                    lambda layer, y, live=live, live_inputs=live_inputs: splice(
                        y, self._reconstruction(layer, live, live_inputs)
                    ),
                ),
                "zero": self._run(ids, None, lambda layer, y: splice(y, torch.zeros_like(y[0]))),
            }
            for alone in self.layers:
                runs[alone] = self._run(
                    ids,
                    None,
                    lambda layer, y, alone=alone, clean=clean: splice(y, clean[layer]) if layer == alone else None,
                )
            following = ids[0, first + 1 :]
            for name, logits in runs.items():
                logs = logits[first:-1].log_softmax(-1)
                losses.setdefault(name, []).append(-logs.gather(1, following[:, None])[:, 0])
            p, q = (runs[name][first:-1].log_softmax(-1) for name in ("model", "replaced"))
            kl.append((p.exp() * (p - q)).sum(-1))
            same.append(p.argmax(-1) == q.argmax(-1))
        mean = {name: torch.cat(parts).mean().item() for name, parts in losses.items()}
        layers = []
        for layer in self.layers:
            y, y_hat, on = (torch.cat(parts[layer]) for parts in (wanted, made, fired))
            missed, variance = (y - y_hat).square().mean(0), y.var(0, unbiased=False)
            # Gemma 3 270M has a dimension whose norm has no gain: it never varies, and has no weight.
            varies = variance > 0
            spread = variance[varies].sqrt()
            scaled, scaled_hat = y[:, varies] / spread.sqrt(), y_hat[:, varies] / spread.sqrt()
            layers.append(
                {
                    "layer": layer,
                    "l0": on.sum(1).double().mean().item(),
                    "fvu": (missed.sum() / variance.sum()).item(),
                    "fvu_weighted": (
                        (scaled - scaled_hat).square().sum() / (scaled - scaled.mean(0)).square().sum()
                    ).item(),
                    "dead": (~on.any(0)).double().mean().item(),
                    "frequent": (on.double().mean(0) > 0.1).double().mean().item(),
                    "ce_delta": mean[layer] - mean["model"],
                }
            )
        everything = {f"ce_{name}": mean[name] for name in ("model", "replaced", "zero")}
        everything["ce_score"] = (mean["zero"] - mean["replaced"]) / (mean["zero"] - mean["model"])
        everything |= {"kl": torch.cat(kl).mean().item(), "top1": torch.cat(same).double().mean().item()}
        return {"tokens": len(torch.cat(wanted[next(iter(self.layers))])), "layers": layers, "all": everything}

    def _reconstruction(self, layer: int, acts: Mapping[int, Tensor], inputs: Mapping[int, Tensor]) -> Tensor:
        """What all layers up to this one write to it."""
        total = self.layers[layer].affine(inputs[layer])
        for below, act_pf in acts.items():
            if below <= layer and layer in self.layers[below].decoders:
                total = total + act_pf @ self.layers[below].decoders[layer]
        return total

    def _run(self, ids: Tensor, read: Callable | None, write: Callable[[int, Tensor], Tensor | None] | None) -> Tensor:
        """Logits (P, V) of a pass in which the sites are read and written."""
        with ExitStack() as stack:
            for layer in self.layers:
                block = self.model.model.layers[layer]
                at = {
                    "mlp": (block.pre_feedforward_layernorm, block.post_feedforward_layernorm),
                    "mlp_out": (block.post_feedforward_layernorm,) * 2,
                    "resid_post": (block,) * 2,
                    "attn_out": (block.self_attn.o_proj,) * 2,
                }[self.site]
                for module, does in zip(at, (read, write), strict=True):
                    if does is None:
                        continue
                    if self.site == "attn_out":

                        def before(_module, args, does=does, layer=layer):
                            new = does(layer, args[0])
                            return None if new is None else (new,)

                        handle = module.register_forward_pre_hook(before)
                    else:
                        handle = module.register_forward_hook(
                            lambda _module, _args, out, does=does, layer=layer: does(layer, out)
                        )
                    stack.callback(handle.remove)
            return self.model(inputs_embeds=self.embedding(ids).double(), use_cache=False).logits[0]


def random_texts(model: BaseModel, n: int = 5, seed: int = 3) -> list[str]:
    """Texts of random tokens, of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.description.vocab_size
    lengths = [7 + 5 * i for i in range(n)]
    return [model.tokenizer.decode(torch.randint(8, vocabulary, (k,), generator=generator).tolist()) for k in lengths]


def contexts_of(model: BaseModel, texts: list[str], length: int) -> list[list[int]]:
    """Pieces of texts, each with `<bos>`, that have a token to count."""
    found = []
    bos = model.tokenizer.bos_token_id
    for text in texts:
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        found += [[bos, *ids[i : i + length - 1]] for i in range(0, len(ids), length - 1)]
    return found


def check_equal(report: EvaluationReport, expected: dict, bound: float = 1e-4) -> None:
    found = report.to_dict()
    assert found["tokens"] == expected["tokens"]
    assert len(found["layers"]) == len(expected["layers"])
    for mine, other in zip(found["layers"], expected["layers"], strict=True):
        assert {key: mine[key] for key in FIGURES} == pytest.approx(
            {key: other[key] for key in FIGURES}, abs=bound, rel=bound
        ), mine["layer"]
    assert found["all"] == pytest.approx(expected["all"], abs=bound, rel=bound)
