"""Interventions from the page: features changed in a graph's own prompt, what the graph predicts, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from crosstrace.graphs import AttributionGraph
from crosstrace.graphs.numbers import plain
from crosstrace.replacement_model import Ablate, Add, FeatureAt, Intervention, Scale, Set, Supernode, SwapIn
from crosstrace.replacement_model.conversations import Conversation
from crosstrace.replacement_model.interventions.references import parse_feature
from crosstrace.tracer.interventions.before_after import before_and_after
from crosstrace.tracer.server.core.models import Prompt, Served
from crosstrace.tracer.server.core.settings import EDITS, MEMBERS, Limits
from crosstrace.tracer.validation.total_effects import signed_effects, without_rows

VERBS = ("ablate", "scale", "add", "set", "swap-in")


@dataclass(frozen=True)
class Edit:
    """One intervention, as the page asks for it.

    Attributes:
        verb: `ablate`, `scale`, `add`, `set` or `swap-in`.
        features: Features such as `L3/417@7`, `L3/417@7:` or, everywhere, `L3/417`.
        name: What the features are called together; "" for a single one.
        value: The factor, the amount, or the activation.
        prompt: For `swap-in` the text that activations are taken from.
    """

    verb: str
    features: tuple[str, ...]
    name: str = ""
    value: float = 0.0
    prompt: str = ""


def interventions_of(edits: Sequence[Edit], served: Served, limits: Limits) -> list[Intervention]:
    """Read what the page asks for.

    Raises:
        ValueError: There are none or too many, or one cannot be read; one line that names it.
    """
    if not 1 <= len(edits) <= EDITS:
        raise ValueError(f"give 1 to {EDITS} interventions, not {len(edits)}")
    found: list[Intervention] = []
    for edit in edits:
        where = _place(edit)
        match edit.verb:
            case "ablate":
                found.append(Ablate(where))
            case "scale":
                found.append(Scale(where, edit.value))
            case "add":
                found.append(Add(where, edit.value))
            case "set":
                found.append(Set(where, edit.value))
            case "swap-in":
                if not isinstance(served.prompt(Prompt(edit.prompt), limits), str):
                    raise ValueError("features are swapped in from a text")
                found.append(SwapIn(where, edit.prompt))
            case _:
                raise ValueError(f"unknown intervention {edit.verb!r}: known are {', '.join(VERBS)}")
    return found


def _place(edit: Edit) -> FeatureAt | Supernode:
    if not 1 <= len(edit.features) <= MEMBERS:
        raise ValueError(f"an intervention names 1 to {MEMBERS:,} features, not {len(edit.features):,}")
    members = []
    for text in edit.features:
        if (feature := parse_feature(text)) is None:
            raise ValueError(f"feature {text!r} cannot be read; write L3/417 or L3/417@7 (layer 3, feature 417)")
        members.append(feature)
    return members[0] if len(members) == 1 else Supernode(edit.name or "group", tuple(members))


@dataclass(frozen=True)
class EditRequest:
    """Interventions on a graph's prompt.

    Attributes:
        edits: What to change.
        new_tokens: Tokens to generate before and after; 0 for none.
        freeze: What is held: `direct`, `iterative` or `constrained:LAYER`.
        free_attention: Recompute attention too.
        top: How many of the likeliest tokens to list.
    """

    edits: tuple[Edit, ...]
    new_tokens: int = 0
    freeze: str = "iterative"
    free_attention: bool = False
    top: int = 10

    def check(self, served: Served, limits: Limits) -> list[Intervention]:
        """Find what is wrong before it waits in the queue.

        Raises:
            ValueError: An intervention or a setting cannot be used here.
        """
        if not 0 <= self.new_tokens <= limits.new_tokens:
            raise ValueError(f"new_tokens must be 0 to {limits.new_tokens}, not {self.new_tokens:,}")
        if not 1 <= self.top <= 100:
            raise ValueError(f"top must be 1 to 100, not {self.top:,}")
        return interventions_of(self.edits, served, limits)


def edited(
    served: Served, graph: AttributionGraph, asked: EditRequest, interventions: Sequence[Intervention]
) -> dict[str, Any]:
    """Run a graph's prompt before and after interventions.

    Returns:
        The fields of `crosstrace.tracer.BeforeAfter`, and `predicted`: for each of the graph's targets that is the next
        token its `token`, `string`, the change of its centred logit that the graph predicts (None where an intervention
        names features that it does not predict for), and the change measured.

    Raises:
        ValueError: The graph is of another model, or a feature or position does not exist.
    """
    model = served.model
    if graph.settings.get("fingerprints") not in (None, served.fingerprints):
        raise ValueError("the graph was traced with other weights than those that are served now")
    prompt = _prompt_of(graph)
    place = (prompt.answer[0] if prompt.answer is not None else len(prompt)) - 1
    targets = [
        (i, int(token))
        for i, (token, at) in enumerate(zip(graph.logit_tokens.tolist(), graph.logit_positions.tolist(), strict=True))
        if token >= 0 and at == place and graph.probability_of(i) is not None
    ]
    new_tokens = 0 if prompt.answer is not None else asked.new_tokens
    result = before_and_after(
        model,
        prompt,
        interventions,
        freeze=asked.freeze,
        free_attention=asked.free_attention,
        top=asked.top,
        max_new_tokens=new_tokens,
        cards=served.cards,
        asked=[token for _, token in targets],
    )
    predicted = [predicted_change(graph, i, interventions, asked.freeze == "direct") for i, _ in targets]
    rows = [
        {"token": change.token, "string": change.string, "predicted": foreseen, "measured": change.logit_change}
        for change, foreseen in zip(result.asked, predicted, strict=True)
    ]
    shown = replace(result, prompt="", token_strings=[], asked=[])
    content = {name: value for name, value in asdict(shown).items() if name not in ("prompt", "token_strings", "asked")}
    return {**content, "predicted": rows, "edits": [asdict(edit) for edit in asked.edits]}


def _prompt_of(graph: AttributionGraph) -> Conversation:
    """The graph's own tokens, with where its answer is."""
    answer = None if graph.spans is None else graph.spans.answer
    return Conversation(tuple(graph.tokens.tolist()), (), answer, ())


def predicted_change(
    graph: AttributionGraph, target: int, interventions: Sequence[Intervention], direct: bool = False
) -> float | None:
    """Return the change of a target's centred logit that the graph predicts.

    What a feature adds to the target over all paths (see `crosstrace.tracer.validation.total_effects`) changes in
    proportion to its activation; features that are intervened on are held, so nothing flows through them.

    Args:
        graph: Raw or pruned.
        target: Index of one of the graph's targets.
        interventions: As `interventions_of` returns them.
        direct: Whether all other features are held: then the edges into the target alone count.

    Returns:
        The change; None where an intervention takes activations from another prompt, or sets or adds to a feature that is
        not in the graph.
    """
    layout = graph.layout
    values = graph.activations[graph.selected_features].numpy().astype(np.float64)
    by_feature: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for node in range(layout.n_features):
        layer, position, feature = graph.feature_of(node)
        by_feature.setdefault((layer, feature), []).append((position, node))
    factors: dict[int, float] = {}
    for intervention in interventions:
        if isinstance(intervention, SwapIn):
            return None
        for member in _members(intervention):
            wanted = _positions(member, len(graph.tokens))
            nodes = [
                node for position, node in by_feature.get((member.layer, member.feature), []) if position in wanted
            ]
            if isinstance(intervention, Set | Add) and len(nodes) < len(wanted):
                return None  # it begins to fire where the graph has no node
            for node in nodes:
                factors[node] = _after(intervention, float(values[node])) / float(values[node]) - 1
    weights = np.zeros(graph.n)
    weights[layout.logits.start + target] = 1.0
    whole = np.ones(graph.n)
    whole[layout.features] = values
    if direct:
        effects = graph.edges.T @ weights
    else:
        effects = signed_effects(without_rows(graph.edges, sorted(factors)), weights, whole) if factors else whole
    return float(sum(change * effects[node] for node, change in factors.items()))


def _members(intervention: Intervention) -> Sequence[FeatureAt]:
    where = intervention.where
    assert isinstance(where, FeatureAt | Supernode)
    return (where,) if isinstance(where, FeatureAt) else where.members


def _positions(member: FeatureAt, n_positions: int) -> set[int]:
    """Those of the prompt that a feature is meant at."""
    match member.positions:
        case None:
            return set(range(n_positions))
        case int(position):
            return {position % n_positions}
        case slice() as part:
            return set(range(*part.indices(n_positions)))
        case several:
            return {position % n_positions for position in several}


def _after(intervention: Intervention, value: float) -> float:
    match intervention:
        case Set(value=given):
            assert isinstance(given, float | int)
            return float(given)
        case Add(amount=amount):
            return max(value + amount, 0.0)
        case Scale(factor=factor):
            return value * factor
        case _:
            return 0.0


def in_words(edit: Mapping[str, Any]) -> str:
    """Say what an edit does, for lists."""
    what = edit["name"] or ", ".join(edit["features"][:3])
    match edit["verb"]:
        case "ablate":
            return f"{what} removed"
        case "swap-in":
            return f"{what} from {edit['prompt']!r}"
        case verb:
            return f"{what} {verb} {plain(edit['value'])}"
