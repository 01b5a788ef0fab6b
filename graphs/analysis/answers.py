"""Influence on a part of an answer, and graphs without what stands at template tokens.

A graph of an answer has one target a token, each read at the position before it, all of the same weight: its influence is
that on the whole answer. A part of it is read by giving all other targets no weight.

Letters: k targets.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import torch

from crosstrace.graphs.analysis.flow import places
from crosstrace.graphs.analysis.pruning import check_whole, prune
from crosstrace.graphs.analysis.subgraphs import restricted
from crosstrace.graphs.graph import AttributionGraph


def answer_targets(graph: AttributionGraph) -> list[int]:
    """Return which of the k targets are the answer's tokens, in the answer's order.

    Raises:
        ValueError: The graph has no answer, or its targets are something else.

    Example:
        >>> graph.logit_strings[answer_targets(graph)[0]]
        'In'
    """
    spans = graph.spans
    if spans is None or spans.answer is None:
        raise ValueError("the graph has no answer; trace one with --answer TEXT or --generate N")
    found = {
        int(position) + 1: i
        for i, (position, layer, token) in enumerate(
            zip(graph.logit_positions, graph.logit_layers, graph.logit_tokens, strict=True)
        )
        if int(layer) == graph.n_layers
        and int(position) + 1 < len(graph.tokens)
        and int(graph.tokens[int(position) + 1]) == int(token)
    }
    if missing := [position for position in range(*spans.answer) if position not in found]:
        token = graph.token_strings[missing[0]]
        raise ValueError(f"the graph's targets are not its answer: none is {token!r}, token {missing[0]} of the prompt")
    return [found[position] for position in range(*spans.answer)]


def parse_span(text: str, n: int) -> tuple[int, int]:
    """Read which tokens of an answer are meant: `3` is one, counted from 0, `2:5` several, `-1` the last, `:` all.

    Args:
        text: As it is written.
        n: How many tokens the answer has.

    Returns:
        The first token, and the one after the last.

    Raises:
        ValueError: It is none of these, or the answer has no such token.
    """
    match = re.fullmatch(r"\s*(-?\d+)?(\s*:\s*(-?\d+)?)?\s*", text)
    if match is None or not text.strip():
        raise ValueError(f"{text!r} is not a token of the answer; write 3 for one, 2:5 for several, counted from 0")
    start = 0 if match[1] is None else int(match[1])
    start += n if start < 0 else 0
    stop = start + 1 if match[2] is None else n if match[3] is None else int(match[3])
    stop += n if stop < 0 else 0
    if not 0 <= start < stop <= n:
        raise ValueError(f"{text!r}: the answer has {n} tokens, 0 to {n - 1}")
    return start, stop


def of_answer(graph: AttributionGraph, start: int = 0, stop: int | None = None) -> AttributionGraph:
    """Return the graph with weight on some tokens of its answer alone; what is pruned is pruned again.

    Args:
        graph: Raw or pruned, of an answer.
        start: The first token, counted from the answer's first.
        stop: The token after the last; None for the answer's end.

    Raises:
        ValueError: The graph has no answer, or no such token, or was read from JSON and is not whole.

    Example:
        >>> prune(of_answer(graph, 2, 3)).influence    # on the third token alone
    """
    check_whole(graph, "reading influence on a part of the answer")
    targets = answer_targets(graph)
    chosen = targets[start:stop]
    if not chosen or start < 0:
        raise ValueError(f"the answer has {len(targets)} tokens, 0 to {len(targets) - 1}; not {start}:{stop}")
    weights = torch.zeros_like(graph.logit_probabilities)
    weights[chosen] = 1.0
    weighed = dataclasses.replace(
        graph, logit_probabilities=weights, target_probabilities=_probabilities(graph), node_mask=None,
        edge_mask_sparse=None, influence=None,
    )  # fmt: skip
    return weighed if graph.node_mask is None else prune(weighed, **graph.settings.get("pruning", {}))


def _probabilities(graph: AttributionGraph) -> torch.Tensor:
    return graph.logit_probabilities if graph.target_probabilities is None else graph.target_probabilities


def without_template(graph: AttributionGraph) -> AttributionGraph:
    """Return the graph with masks that hide features, errors and tokens at the template's tokens; targets stay.

    Nothing is computed anew: influence and scores are those of the whole graph. A prompt without a template is as it was.

    Args:
        graph: Pruned.
    """
    spans = graph.spans
    if spans is None or not spans.template:
        return graph
    layout = graph.layout
    _, positions = places(graph)
    hidden = np.isin(positions, sorted(spans.template))
    hidden[layout.logits] = False
    return restricted(graph, nodes=[node for node in graph.kept_nodes() if not hidden[node]])
