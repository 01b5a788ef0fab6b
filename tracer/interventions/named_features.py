"""Features by the names that people see on a graph: groups that its page saved, automatic labels from cards, guesses.

Labels that were given are looked up first, as everywhere; then groups, the names in a graph, and automatic labels.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from crosstrace.graphs import AttributionGraph, check_state, read_origin
from crosstrace.graphs.cards.labels import MARK, is_guess
from crosstrace.graphs.viewer_ids import feature_of_id
from crosstrace.replacement_model import FeatureAt, Intervention, ReplacementModel, Supernode
from crosstrace.replacement_model.fingerprints import weight_fingerprints
from crosstrace.replacement_model.interventions.references import (
    find_features,
    is_feature,
    name_and_positions,
    parse_positions,
    unknown_label,
)
from crosstrace.tracer.cards.lookup import find_cards
from crosstrace.tracer.weights import Note, check_weights


def by_name(
    interventions: Sequence[Intervention],
    model: ReplacementModel,
    groups: str | os.PathLike[str] | None = None,
    note: Note | None = None,
    graph: AttributionGraph | None = None,
    cards: Path | None = None,
) -> list[Intervention]:
    """Replace the groups, automatic labels and guesses that interventions name by their features.

    A group's features are at their positions in the graph; `"my group"@3:` moves them to others. Tokens, errors and outputs
    in a group are not intervened on. A name in a graph means all of its features that are shown under it, at every position.
    Names that are none of these stay as they are.

    Args:
        interventions: As `parse_intervention` reads them.
        model: The replacement model.
        groups: A file that the page saved, or a graph's JSON with groups in it.
        note: Called with one line if a graph is from before fingerprints could tell that these are its weights.
        graph: A graph, whose names may be used: its guesses, and what labels it had when it was traced.
        cards: Feature cards to use; None for those beside the transcoders.

    Returns:
        The interventions in the same order.

    Raises:
        OSError: The file of groups, or that of cards, cannot be read.
        ValueError: It does not hold groups, a group has no features, the graph is of another model, no feature has the
            automatic label, or a guess is named without a graph that holds it.

    Example:
        >>> by_name([Ablate('"states"')], model, "dallas.state.json")[0].where.members
        (FeatureAt(layer=0, feature=417, positions=5), FeatureAt(layer=3, feature=42, positions=7))
    """
    if groups is not None:
        origin = read_origin(groups)
        what = f"the graph of {groups}"
        check_weights(model, origin.fingerprints, what, (origin.model, origin.transcoders), note, exact=False)
    known = {} if groups is None else read_groups(groups, model.description.n_layers)
    labels = model.transcoders.labels
    given = set(labels.values())
    if graph is not None:
        shown = names_in_graph(graph, model, note)
        known = {name: where for name, where in shown.items() if name not in given} | known
    unknown = {name for name, _ in _texts(interventions)} - known.keys() - given
    known |= automatic_labels(model, {name for name in unknown if name.startswith(MARK)}, cards)
    for name in sorted(unknown):
        if is_guess(name):
            where = "it is not in this one" if graph is not None else "give one with --graph"
            raise ValueError(f"{name!r} is a guess, which is known where a graph holds it: {where}, or write L3/417")
    replaced = []
    for intervention in interventions:
        for name, at in _texts([intervention]):
            if name in known:
                if not known[name].members:
                    raise ValueError(f"{groups}: group {name!r} has no features")
                intervention = dataclasses.replace(intervention, where=_at(known[name], at))
            elif groups is not None or graph is not None:
                where = " or ".join([*([str(groups)] if groups is not None else []), *(["the graph"] if graph else [])])
                find_features(str(intervention.where), labels, {*known}, f"in {where} or the labels")
        replaced.append(intervention)
    return replaced


def read_groups(path: str | os.PathLike[str], n_layers: int) -> dict[str, Supernode]:
    """Read the features of the groups that a page saved, by the groups' names.

    Groups with the same name become one group.

    Args:
        path: A file that the page saved, or a graph's JSON with groups in it.
        n_layers: Layers of the model.

    Raises:
        OSError: There is no such file.
        ValueError: It is not a saved state, or is one of a model with more layers.

    Example:
        >>> read_groups("dallas.state.json", model.description.n_layers)["states"]
    """
    groups: dict[str, Supernode] = {}
    for name, *ids in check_state(path)["supernodes"]:
        before = groups[name].members if name in groups else ()
        places = (feature_of_id(node_id, n_layers) for node_id in ids)
        members = dict.fromkeys((*before, *(FeatureAt(*place) for place in places if place is not None)))
        for member in members:
            if not member.layer < n_layers:
                raise ValueError(f"{path}: group {name!r} has {member}; the model has layers 0 to {n_layers - 1}")
        groups[name] = Supernode(name, tuple(members))
    return groups


def names_in_graph(graph: AttributionGraph, model: ReplacementModel, note: Note | None = None) -> dict[str, Supernode]:
    """Find the features of a graph by the names that it shows: labels and guesses.

    Args:
        graph: A graph of the model.
        model: The replacement model.
        note: Called with one line if the graph is from before fingerprints could tell that these are its weights.

    Returns:
        The features of each name, each at every position.

    Raises:
        ValueError: The graph is of another model or other transcoders.
    """
    names = (graph.model_name, graph.transcoders_name)
    check_weights(model, graph.settings.get("fingerprints"), "the graph", names, note, exact=False)
    if graph.n_layers != model.description.n_layers:
        raise ValueError(f"the graph has {graph.n_layers} layers; the model has {model.description.n_layers}")
    members: dict[str, dict[FeatureAt, None]] = {}
    for node in range(graph.layout.n_features):
        if name := graph.name_of(node):
            members.setdefault(name, {})[FeatureAt(*graph.feature_key(node))] = None
    return {name: Supernode(name, tuple(features)) for name, features in members.items()}


def automatic_labels(model: ReplacementModel, wanted: Iterable[str], given: Path | None = None) -> dict[str, Supernode]:
    """Find all features with some automatic labels (`~ Dallas → Texas`) in feature cards.

    Args:
        model: The replacement model.
        wanted: The labels.
        given: The cards to use; None for those beside the transcoders.

    Returns:
        The features of each label.

    Raises:
        OSError: The given file cannot be read.
        ValueError: There are no cards, they belong to other transcoders, or no feature has the label; the message suggests
            close ones.
    """
    members: dict[str, list[FeatureAt]] = {label: [] for label in wanted}
    if not members:
        return {}
    problems: list[str] = []
    cards = find_cards(
        model.name, model.transcoders.name, weight_fingerprints(model), given=given, note=problems.append
    )
    if cards is None:
        why = problems[0] if problems else f"{model.transcoders.name} has no feature cards (see crosstrace features)"
        raise ValueError(f"label {next(iter(members))!r} comes from feature cards; {why}")
    labels = {key: cards.label(key) for key in cards}
    for key, label in labels.items():
        if label in members:
            members[label].append(FeatureAt(*key))
    for label, features in members.items():
        if not features:
            raise ValueError(unknown_label(label, set(labels.values())))
    return {label: Supernode(label, tuple(features)) for label, features in members.items()}


def _texts(interventions: Iterable[Intervention]) -> Iterator[tuple[str, str | None]]:
    """Yield the names in interventions with the positions written after them; features named by number are skipped."""
    for intervention in interventions:
        if isinstance(intervention.where, str) and not is_feature(intervention.where):
            yield name_and_positions(intervention.where)


def _at(group: Supernode, at: str | None) -> Supernode:
    if at is None:
        return group
    features = dict.fromkeys((member.layer, member.feature) for member in group.members)
    return Supernode(group.name, tuple(FeatureAt(*feature, parse_positions(at)) for feature in features))
