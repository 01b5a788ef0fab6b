"""The names that outside tools see: of nodes (unique in a graph, the same in every export), features, graphs, models.

Letters: L layers, P positions.
"""

from __future__ import annotations

import re

from crosstrace.graphs.graph import AttributionGraph

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def target_numbers(graph: AttributionGraph) -> list[int]:
    """Return what stands for the token in each target's id: its token, or a negative number of its own.

    Targets that are not a token (a contrast, a vector, a feature), and a second target with the same token and
    position, get -2, -3, … by their place among the targets; -1 is reserved for error nodes.
    """
    taken: set[tuple[int, int]] = set()
    numbers = []
    for i, place in enumerate(zip(graph.logit_tokens.tolist(), graph.logit_positions.tolist(), strict=True)):
        numbers.append(place[0] if place[0] >= 0 and place not in taken else -(2 + i))
        taken.add(place)
    return numbers


def node_ids(graph: AttributionGraph) -> list[str]:
    """Return the id of every node, in node order: `{l}_{f}_{p}`, `{l}_-1_{p}`, `E_{token}_{p}`, `{L+1}_{token}_{p}`.

    Example:
        >>> node_ids(graph)[0]
        '0_417_3'
    """
    L, P = graph.n_layers, len(graph.tokens)
    features = graph.active_features[graph.selected_features].tolist()
    ids = [f"{layer}_{feature}_{position}" for layer, position, feature in features]
    ids += [f"{layer}_-1_{position}" for layer in range(L) for position in range(P)]
    ids += [f"E_{token}_{position}" for position, token in enumerate(graph.tokens.tolist())]
    positions = graph.logit_positions.tolist()
    ids += [f"{L + 1}_{number}_{p}" for number, p in zip(target_numbers(graph), positions, strict=True)]
    return ids


def feature_of_id(node_id: str, n_layers: int) -> tuple[int, int, int] | None:
    """Return (layer, feature, position) of a node by its id; None where it is not a feature's.

    Args:
        node_id: As `node_ids` returns it.
        n_layers: L.

    Example:
        >>> feature_of_id("0_417_3", 6), feature_of_id("7_42_3", 6), feature_of_id("E_42_3", 6)
        ((0, 417, 3), None, None)
    """
    parts = node_id.split("_")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        return None  # a token, an error node, a target that is not a token
    layer, feature, position = map(int, parts)
    return None if layer == n_layers + 1 else (layer, feature, position)  # output tokens are there


def cantor_pairing(layer: int, feature: int) -> int:
    """Return one number for (layer, feature), from which viewers recover both.

    Example:
        >>> cantor_pairing(0, 41)
        902
    """
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def scan_name(model_name: str, scan: str | None = None) -> str:
    """Return how viewers name the model: `scan`, or the last part of the model's name.

    Raises:
        ValueError: `scan` holds more than letters, digits, `_`, `.` and `-`.
    """
    return viewer_name("scan", scan, model_name.rstrip("/").split("/")[-1], "model")


def viewer_name(what: str, given: str | None, found: str, fallback: str) -> str:
    """Return a name that viewers accept.

    Args:
        what: What it names, for the message.
        given: The name that was asked for; None for one made of `found`.
        found: Any text.
        fallback: The name where nothing of `found` is left.

    Raises:
        ValueError: `given` holds more than letters, digits, `_`, `.` and `-`.
    """
    if given is None:
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", found).strip("-") or fallback
    if not _NAME.fullmatch(given):
        raise ValueError(f"{what} must be made of letters, digits, '_', '.' and '-', not {given!r}")
    return given


def feature_name(layer: int, feature: int) -> str:
    """Return a feature as it is written everywhere.

    Example:
        >>> feature_name(3, 417)
        'L3/417'
    """
    return f"L{layer}/{feature}"
