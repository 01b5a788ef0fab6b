"""Generation under interventions, with the KV cache and the sampling of `transformers`' own `generate`.

Letters: R sequences, W positions of a pass, P positions of the prompt, T positions of prompt and generated tokens,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crosstrace.kernels import SparseActivations
from crosstrace.replacement_model.architectures.float32 import float32_arithmetic
from crosstrace.replacement_model.architectures.hooks import Hook, hooked
from crosstrace.replacement_model.interventions.edited_features import EditTable, Entries, PassWindow, row_activations
from crosstrace.replacement_model.interventions.edits import Edits, resolve
from crosstrace.replacement_model.interventions.freeze import Errors, Freeze
from crosstrace.replacement_model.interventions.held_errors import HeldErrors
from crosstrace.replacement_model.interventions.hooked_pass import HookedPass
from crosstrace.replacement_model.interventions.kinds import Intervention
from crosstrace.replacement_model.interventions.padded_prompts import PaddedPrompts
from crosstrace.replacement_model.local.local_model import LocalReplacementModel
from crosstrace.replacement_model.local.running_model import RunningModel
from crosstrace.replacement_model.prompts import Prompt

# Arguments of `generate` that run the model on something other than the text so far, and the value that turns each off.
_ELSEWHERE = {
    "guidance_scale": 1,
    "prompt_lookup_num_tokens": 0,
    "assistant_model": None,
    "assistant_early_exit": None,
    "prefill_chunk_size": None,
    "penalty_alpha": 0,
}


@dataclass(frozen=True)
class Generation:
    """Generated tokens, with what was requested about them.

    Attributes:
        prompt_p: (P,) int64 token ids of the prompt.
        tokens_rt: (R, T - P) int64 generated token ids; sequences that ended early are filled with the padding token.
        texts: The generated tokens of each sequence as text, without special tokens; empty for a model without a
            tokenizer.
        logits_rtv: (R, T - P, V) float32 logits that each token was chosen by, before sampling warps them; or None.
        activations: For each sequence the active features at all positions that the model read, or None. The last
            token is chosen but not read.
        became_active: How many features at held positions, which are the prompt's with `freeze_prompt_only`, fired that
            the unchanged prompt does not have; see `crosstrace.replacement_model.Outcome`. Of the first sequence.
        became_inactive: How many of the features there did not fire any more.
    """

    prompt_p: Tensor
    tokens_rt: Tensor
    texts: list[str]
    logits_rtv: Tensor | None
    activations: list[SparseActivations] | None
    became_active: int = 0
    became_inactive: int = 0


def generate(
    model: RunningModel,
    prompt: Prompt | LocalReplacementModel,
    interventions: Sequence[Intervention] = (),
    max_new_tokens: int = 20,
    freeze: Freeze | str = "iterative",
    errors: Errors = "frozen",
    freeze_prompt_only: bool = True,
    return_logits: bool = False,
    return_activations: bool = False,
    **sampling: Any,
) -> Generation:
    """Generate from a prompt under interventions.

    Interventions at open-ended positions (`slice(5, None)`, or none given) act on generated tokens too.

    Args:
        model: The replacement model.
        prompt: A text, token ids, or the prompt's local replacement model.
        interventions: What to change; an empty list generates as the unchanged model does.
        max_new_tokens: The largest number of tokens to generate.
        freeze: What is held at the prompt's own values; see `crosstrace.replacement_model.intervene_batch`. It applies
            to the prompt's tokens, and to generated ones as `freeze_prompt_only` says.
        errors: `"frozen"` at the vectors of the unchanged prompt; `"recomputed"`: the model's own MLPs run, and changes
            of features are added to their output; `"dropped"`: the replacement model generates. At generated tokens,
            where nothing is held, frozen errors are recomputed.
        freeze_prompt_only: True lets generated tokens attend freely and computes their features, errors and norms anew;
            the unchanged prompt has no values to hold them at. False holds generated tokens too, at what the unchanged
            model does on the tokens so far; it runs the unchanged model at every step and cannot use the KV cache.
        return_logits: Whether to return the logits of each step.
        return_activations: Whether to return the active features.
        sampling: Arguments of `transformers`' `generate`, such as `do_sample`, `temperature`, `num_return_sequences` and
            `use_cache`. Without `do_sample=True` the most probable token is taken. Guidance, assisted decoding and
            prefilling in chunks are refused; beams return tokens only.

    Returns:
        The R generated sequences.

    Raises:
        ValueError: The prompt, an intervention or a setting is not valid, or two settings exclude each other; one line
            that names it.

    Example:
        >>> model = ReplacementModel.demo()
        >>> generate(model, "The capital of the state containing Dallas is", [Ablate("Texas")], max_new_tokens=1).texts
    """
    freeze, held = Freeze.parse(freeze), HeldErrors.parse(errors)
    if held.kind == "replaced":
        raise ValueError(
            "generation takes errors that are frozen, recomputed or dropped; given vectors fit one prompt only"
        )
    freeze.check_layers(model.description.n_layers)
    held.check_freeze(freeze)
    _check_settings(model, max_new_tokens, freeze_prompt_only, return_logits or return_activations, sampling)
    localize = model.localizer()
    local = localize(prompt)
    total = local.n_positions + max_new_tokens
    if total > model.description.max_positions:
        raise ValueError(
            f"prompt and generated tokens come to {total:,}; model {model.name} takes at most "
            f"{model.description.max_positions:,}"
        )
    edits = resolve(interventions, local, localize, max_new_tokens)
    held.check_edits([edits])
    # Explicit, because a checkpoint's own settings may turn the cache off, and the place of a pass in the text depends on it.
    use_cache = freeze_prompt_only and sampling.get("use_cache") is not False
    steps = _Steps(model, local, edits, freeze, held, freeze_prompt_only, use_cache)
    tokens_p = local.tokens_p.to(model.device)
    with hooked(steps.hooks()), float32_arithmetic():
        output = model.model.generate(  # type: ignore[operator]
            input_ids=tokens_p[None],
            attention_mask=torch.ones_like(tokens_p[None]),
            **{
                "do_sample": False,
                "max_new_tokens": max_new_tokens,
                "pad_token_id": _padding(model),
                "output_logits": return_logits,
                **sampling,
                "use_cache": use_cache,
                "return_dict_in_generate": True,
            },
        )
    tokens_rt = output.sequences[:, len(tokens_p) :].cpu()
    tokenizer = model.tokenizer
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in tokens_rt.tolist()] if tokenizer else []
    logits_rtv = torch.stack(output.logits, dim=1).float() if return_logits else None
    activations = steps.activations() if return_activations else None
    texts = texts or [""] * len(tokens_rt)
    return Generation(local.tokens_p, tokens_rt, texts, logits_rtv, activations, *steps.flips)


def _check_settings(
    model: RunningModel, max_new_tokens: int, freeze_prompt_only: bool, returns_more: bool, sampling: dict[str, Any]
) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")

    def setting(name: str) -> Any:
        """Look a setting up as `generate` does: the argument, the settings given, the model's own."""
        own = [sampling.get("generation_config"), getattr(model.model, "generation_config", None)]
        said = [sampling.get(name), *(getattr(config, name, None) for config in own)]
        return next((value for value in said if value is not None), None)

    for name, off in _ELSEWHERE.items():
        if setting(name) not in (None, off):
            raise ValueError(
                f"{name} runs the model on other texts too, where interventions do not apply; leave it out"
            )
    if (setting("num_beams") or 1) > 1 and returns_more:
        raise ValueError("a beam search mixes sequences, so it cannot return logits or activations; use num_beams=1")
    if not freeze_prompt_only and sampling.get("use_cache"):
        raise ValueError("freeze_prompt_only=False cannot use the KV cache; leave out use_cache=True")


def _padding(model: RunningModel) -> int:
    """Choose a token to fill ended sequences with."""
    own = None if model.tokenizer is None else model.tokenizer.pad_token_id
    return 0 if own is None else int(own)


class _Steps:
    """The hooks of consecutive forward passes, with the place of each in the text."""

    def __init__(
        self,
        model: RunningModel,
        local: LocalReplacementModel,
        edits: Edits,
        freeze: Freeze,
        errors: HeldErrors,
        prompt_only: bool,
        cached: bool,
    ) -> None:
        self.model, self.local, self.edits = model, local, edits
        self.prompt_only, self.cached = prompt_only, cached
        self.passing = HookedPass(model.sites, model.transcoders, freeze, errors)
        self.seen = 0
        self.flips = (0, 0)  # features that became active and inactive in the last pass with something held
        self._features: list[tuple[int, int, list[Entries]]] = []  # of each pass: start, width, entries by layer

    def hooks(self) -> list[tuple[nn.Module, Hook]]:
        """Return all hooks, first the one that prepares the pass."""
        return [
            (self.model.sites.embedding, self._begin),
            *self.passing.hooks(),
            (self.model.sites.final_norm, self._end),
        ]

    def _begin(self, args: Any, kwargs: Any, output: Tensor) -> None:
        if self.passing.paused:
            return
        tokens_rw = args[0] if args else kwargs["input"]
        n_rows, width = tokens_rw.shape
        self.start = self.seen if self.cached else 0
        self.seen = self.start + width
        device = self.model.device
        position_w = torch.arange(self.start, self.start + width, device=device)
        live_rw = (position_w >= self.model.description.excluded_first).expand(n_rows, width)
        window = PassWindow(torch.full((n_rows,), -self.start, device=device), live_rw)
        table = EditTable([self.edits] * n_rows, self.model.transcoders.reader.n_features, device)
        self.passing.begin(table, window, None if self.start else self._base(tokens_rw))

    def _base(self, tokens_rw: Tensor) -> PaddedPrompts:
        """Return what is held: the unchanged prompt, or the unchanged model on all tokens so far."""
        if self.prompt_only or tokens_rw.shape[1] == self.local.n_positions:
            return PaddedPrompts([self.local], [0] * len(tokens_rw), "right")
        self.passing.paused = True
        try:
            locals_r = [self.model.local(tokens.cpu()) for tokens in tokens_rw]
        finally:
            self.passing.paused = False
        return PaddedPrompts(locals_r, range(len(locals_r)), "right")

    def _end(self, args: Any, kwargs: Any, output: Tensor) -> None:
        if self.passing.paused:
            return
        if self.passing.result.flips:
            became_active, became_inactive = torch.stack(self.passing.result.flips).sum(0)[0].tolist()
            self.flips = became_active, became_inactive
        if not self.start:  # without a cache every pass reads the whole text again: the last one counts
            self._features.clear()
        self._features.append((self.start, self.passing.window.width, self.passing.result.features))

    def activations(self) -> list[SparseActivations]:
        """Return the active features of each sequence at the positions read."""
        n_rows, n_layers = self.passing.window.n_rows, self.model.description.n_layers
        rows = []
        for row in range(n_rows):
            layers: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in range(n_layers)]
            for start, width, features in self._features:
                part = row_activations(features, row * width, width)
                for layer in range(n_layers):
                    here = part.layer(layer)
                    layers[layer].append((part.positions[here] + start, part.features[here], part.values[here]))
            joined = [tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True)) for parts in layers]
            rows.append(SparseActivations.from_layers(joined, self.seen))  # type: ignore[arg-type]
        return rows
