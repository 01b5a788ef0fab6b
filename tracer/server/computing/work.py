"""What the worker does for a request: trace, look at the next token, change features. Runs in the engine's thread.

Letters: V vocabulary, T generated tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from crosstrace.graphs import AttributionGraph, with_card_labels
from crosstrace.graphs.page.data import page_data
from crosstrace.graphs.text import short
from crosstrace.replacement_model import FeatureAt, Freeze, Intervention, Set
from crosstrace.replacement_model.conversations import Conversation, ending
from crosstrace.tracer.attention.ranking import with_attention
from crosstrace.tracer.attribution.targets import top_logits
from crosstrace.tracer.progress import generation_progress, step_progress
from crosstrace.tracer.server.core.models import Prompt, Served
from crosstrace.tracer.server.core.settings import Limits
from crosstrace.tracer.server.core.store import Entry, GraphStore
from crosstrace.tracer.sweeps.settings import TraceSettings

_LARGEST_BATCH, _MOST_TERMS = 4096, 100


@dataclass(frozen=True)
class TraceRequest:
    """A graph that is asked for.

    Attributes:
        prompt: What is traced.
        settings: How, as for the command line.
        attention_terms: The strongest terms kept of each head that mattered; None not to look at heads.
    """

    prompt: Prompt
    settings: TraceSettings = field(default_factory=TraceSettings)
    attention_terms: int | None = None

    def check(self, served: Served, limits: Limits) -> str | Conversation:
        """Find what is wrong before it waits in the queue, and return the prompt for the model.

        Raises:
            ValueError: The prompt or a setting cannot be used here.
        """
        asked = self.settings
        if not 1 <= asked.max_logits <= limits.feature_nodes:
            raise ValueError(f"max_logits must be 1 to {limits.feature_nodes:,}, not {asked.max_logits:,}")
        if not 0 < asked.logit_probability <= 1:
            raise ValueError(f"logit_probability must be above 0 and at most 1, not {asked.logit_probability}")
        if asked.max_feature_nodes is not None and not 0 <= asked.max_feature_nodes <= limits.feature_nodes:
            raise ValueError(
                f"max_feature_nodes must be 0 to {limits.feature_nodes:,}, not {asked.max_feature_nodes:,}"
            )
        if asked.batch_size is not None and not 1 <= asked.batch_size <= _LARGEST_BATCH:
            raise ValueError(f"batch_size must be 1 to {_LARGEST_BATCH:,}, not {asked.batch_size:,}")
        if self.attention_terms is not None and not 1 <= self.attention_terms <= _MOST_TERMS:
            raise ValueError(f"qk_topk must be 1 to {_MOST_TERMS}, not {self.attention_terms:,}")
        return served.prompt(self.prompt, limits)


@dataclass(frozen=True)
class Traced:
    """A graph as `crosstrace trace` writes it.

    Attributes:
        graph: Pruned, with guesses.
        notes: What is probably not meant in the prompt.
    """

    graph: AttributionGraph
    notes: list[str] = field(default_factory=list)


def trace_graph(served: Served, asked: TraceRequest, prompt: str | Conversation) -> Traced:
    """Trace, prune and name as the command line does.

    Args:
        served: The model.
        asked: The request.
        prompt: What `TraceRequest.check` returned.

    Raises:
        ValueError: A target cannot be used.
        MemoryError: Not even one row fits.
    """
    notes: list[str] = []
    graph = asked.settings.trace(served.model, prompt, note=notes.append)
    with step_progress() as report:
        report("naming features", 0, 0)
    pruned = asked.settings.finish(graph, served.model)
    if asked.attention_terms is not None:
        pruned = with_attention(pruned, served.model, terms=asked.attention_terms)
    return Traced(pruned, notes)


def keep(store: GraphStore, served: Served, traced: Traced, asked: TraceRequest, slug: str) -> Entry:
    """Keep a graph with its page.

    Raises:
        ValueError: It is too large for a page or the database.
        OSError: The disk is full.
    """
    graph = traced.graph
    labelled = with_card_labels(graph, served.cards)
    top = int(graph.logit_probabilities.argmax()) if graph.layout.n_logits else -1
    about = {
        "prompt": shown_prompt(graph),
        "model": served.name,
        "answer": graph.target_name(top) if top >= 0 else "",
        "probability": graph.probability_of(top) if top >= 0 else None,
        "notes": traced.notes,
        "tokens": len(graph.tokens),
        "asked": {
            "prompt": asked.prompt.text,
            "messages": [dict(message) for message in asked.prompt.messages],
            "answer": asked.prompt.answer,
            "targets": [str(target) for target in asked.settings.targets],
            "max_logits": asked.settings.max_logits,
            "max_feature_nodes": asked.settings.max_feature_nodes,
            "node_threshold": asked.settings.node_threshold,
            "edge_threshold": asked.settings.edge_threshold,
        },
    }
    return store.add(graph, page_data(labelled, served.cards), slug, served.scan, about)


def shown_prompt(graph: AttributionGraph) -> str:
    """The prompt without `<bos>`, in one line."""
    return short(" ".join(graph.prompt.removeprefix("<bos>").split()) or "".join(graph.token_strings), 200)


@dataclass(frozen=True)
class NextToken:
    """The tokens that may come next.

    Attributes:
        prompt: The prompt as the model read it.
        tokens: Each of its tokens.
        salient: (id, text, probability) of the fewest tokens that reach the probability asked for, likeliest first.
        count: How many tokens that are.
        cumulative: Their probabilities' sum.
    """

    prompt: str
    tokens: list[str]
    salient: list[tuple[int, str, float]]

    @property
    def cumulative(self) -> float:
        return sum(probability for _, _, probability in self.salient)


def next_token(served: Served, prompt: str | Conversation, most: int, probability: float) -> NextToken:
    """Run a prompt and return what may come next."""
    model = served.model
    ids = model.tokenize(prompt)
    logits_v = _logits(served, ids)
    tokens, shares = top_logits(logits_v, most, probability)
    strings = model.token_strings(tokens.cpu())
    text = model.tokenizer.decode(ids.tolist()) if model.tokenizer is not None else " ".join(model.token_strings(ids))
    salient = list(zip(tokens.tolist(), strings, shares.tolist(), strict=True))
    return NextToken(text, model.token_strings(ids), salient)


def _logits(served: Served, tokens_p: Tensor) -> Tensor:
    """Return (V,) logits after a prompt, from the pass that a trace runs."""
    return served.model.local(tokens_p).logits(tokens_p.shape[0] - 1)


@dataclass(frozen=True)
class Steer:
    """One feature of a request to `/steer`; see there."""

    layer: int
    feature: int
    read_at: int
    steer_at: int | None
    delta: float | None


@dataclass(frozen=True)
class Steered:
    """Both generations, the prompt included: tokens, and for each step the likeliest tokens.

    Attributes:
        ids: All tokens.
        tokens: Their texts.
        first: Where the generated ones begin.
        tops: (text, probability) of the likeliest tokens, for each generated token and one more.
    """

    ids: list[int]
    tokens: list[str]
    first: int
    tops: list[list[tuple[str, float]]]


def steer(
    served: Served,
    prompt: str | Conversation,
    features: Sequence[Steer],
    n_tokens: int,
    top: int,
    temperature: float,
    frequency_penalty: float,
    seed: int | None,
    freeze_attention: bool,
) -> tuple[Steered, Steered]:
    """Generate without and with features held at their activation plus a delta, or at zero.

    Raises:
        ValueError: A feature or position does not exist.
    """
    model = served.model
    local = model.local(prompt)
    active = {
        (layer, position, feature): value
        for (layer, position, feature), value in zip(
            map(tuple, local.activations.indices.tolist()), local.activations.values.tolist(), strict=True
        )
    }
    edits: list[Intervention] = []
    for one in features:
        place = one.steer_at if one.steer_at is not None else slice(local.n_positions, None)
        value = 0.0 if one.delta is None else active.get((one.layer, one.read_at, one.feature), 0.0) + one.delta
        edits.append(Set(FeatureAt(one.layer, one.feature, place), value))
    freeze = Freeze.iterative("frozen" if freeze_attention else "free")
    sampling: dict[str, Any] = {"repetition_penalty": 1.0, "eos_token_id": ending(model.tokenizer) or None}
    if temperature > 0:
        sampling |= {
            "do_sample": True,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "logits_processor": [_Sampling(temperature, frequency_penalty, local.n_positions)],
        }
    found = []
    for changes in ((), edits):
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            if seed is not None:
                torch.manual_seed(seed)
            # One more than is shown: its logits are those after the last token.
            what = "generating steered" if changes else "generating"
            with generation_progress(what, n_tokens + 1) as told:
                made = model.generate(
                    local,
                    changes,
                    n_tokens + 1,
                    freeze if changes else "iterative",
                    return_logits=True,
                    stopping_criteria=told,
                    **sampling,
                )
        assert made.logits_rtv is not None
        found.append(_steered(served, local.tokens_p, made.tokens_rt[0][:-1], made.logits_rtv[0], top))
    return found[0], found[1]


def _steered(served: Served, prompt_p: Tensor, tokens_t: Tensor, logits_tv: Tensor, top: int) -> Steered:
    model = served.model
    shares, tokens = logits_tv.float().softmax(-1).topk(min(top, logits_tv.shape[-1]))
    texts = [model.token_strings(row.cpu()) for row in tokens]
    tops = [list(zip(row, values, strict=True)) for row, values in zip(texts, shares.tolist(), strict=True)]
    ids_t = torch.cat([prompt_p.cpu(), tokens_t.cpu()])
    return Steered(ids_t.tolist(), model.token_strings(ids_t), len(prompt_p), tops)


class _Sampling:
    """Divides logits by the temperature, then takes off the penalty for each time that a token was generated before."""

    def __init__(self, temperature: float, penalty: float, n_prompt: int) -> None:
        self.temperature, self.penalty, self.n_prompt = temperature, penalty, n_prompt

    def __call__(self, tokens_rt: Tensor, logits_rv: Tensor) -> Tensor:
        logits_rv = logits_rv / self.temperature
        for row, tokens in enumerate(tokens_rt[:, self.n_prompt :]):
            logits_rv[row] -= self.penalty * torch.bincount(tokens, minlength=logits_rv.shape[1])
        return logits_rv
