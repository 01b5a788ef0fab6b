"""Attention in the terminal: heads worth asking about, an edge by head, a score by node."""

from __future__ import annotations

import math

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from crosstrace.graphs import AttributionGraph
from crosstrace.graphs.numbers import probability, share, signed
from crosstrace.graphs.text import short
from crosstrace.tracer.attention.report import AttentionReport, ScoreReport
from crosstrace.tracer.terminal.tables import (
    add_numbers,
    add_row,
    add_words,
    at,
    coloured,
    fitted,
    is_narrow,
    plain_table,
)

_HEADS_A_ROW = 8
_KEYS = 12


def show_attention(report: AttentionReport, console: Console | None = None) -> None:
    """Print what was asked for.

    Args:
        report: The report.
        console: Where to print; None for standard output.
    """
    console = console or Console()
    parts: list[RenderableType] = []
    if report.heads:
        parts += [_ranked(report, console), _dim("share: of the influence of the graph's edges; net: with signs.\n")]
    if report.loadings is not None:
        for edge in range(len(report.loadings)):
            parts.append(_edge(report, edge))
    if report.score is not None:
        parts += _score(report.graph, report.score, report.top, console)
    for part in parts:
        console.print(part)


def _dim(text: str) -> Text:
    return Text(text, style="dim")


def _cells(console: Console, columns: int, most: int = 44) -> int:
    """How many cells a column of names gets beside columns of numbers."""
    return max(12, min(most, console.width - columns))


def _name(graph: AttributionGraph, node: int, cells: int) -> str:
    if node >= graph.layout.n_sources and graph.layout.n_logits and node == graph.layout.n_sources:
        return "remainder"
    return fitted(graph.describe(node), cells)


def _position(graph: AttributionGraph, position: int, cells: int = 12) -> str:
    return at(graph.token_name(position), position, cells)


def _ranked(report: AttentionReport, console: Console) -> Table:
    graph = report.graph
    table = plain_table("Heads worth asking about")
    table.add_column("head", style="bold", no_wrap=True)
    add_numbers(table, "share", "net")
    add_words(table, "mostly from")
    add_words(table, "to")
    if not is_narrow(console):
        add_words(table, "feeds")
    for one in report.heads:
        cells = [f"L{one.layer}.H{one.head}", share(one.carried), share(one.net)]
        cells += [_position(graph, one.key), _position(graph, one.query)]
        if not is_narrow(console):
            cells.append(fitted(graph.describe(one.fed), _cells(console, 62, 40)))
        add_row(table, *cells)
    return table


def _edge(report: AttentionReport, edge: int) -> Table:
    graph, loadings = report.graph, report.loadings
    assert loadings is not None
    target, source = loadings.edges[edge].tolist()
    weight = float(loadings.weights[edge])
    table = plain_table(f"{graph.describe(source)} → {graph.describe(target)}: {signed(weight)}")
    n_heads = loadings.heads.shape[2]
    shown = list(range(n_heads)) if n_heads <= _HEADS_A_ROW else _strongest_heads(report, edge)
    add_numbers(
        table, "layer", *(f"H{head}" for head in shown), *(["others"] if len(shown) < n_heads else []), "bypass"
    )
    for layer in range(loadings.heads.shape[1]):
        of_layer = loadings.heads[edge, layer]
        if not bool(of_layer.any()):
            continue
        values = [float(of_layer[head]) for head in shown]
        if len(shown) < n_heads:
            values.append(float(of_layer.sum()) - sum(values))
        cells = [coloured(signed(value), value) for value in [*values, float(loadings.bypass[edge, layer])]]
        add_row(table, f"L{layer}", *cells)
    if not table.row_count:
        table.caption = Text("no attention lies between them: the edge bypasses every layer's heads")
    return table


def _strongest_heads(report: AttentionReport, edge: int) -> list[int]:
    assert report.loadings is not None
    strongest = report.loadings.heads[edge].abs().amax(0).argsort(descending=True)[: _HEADS_A_ROW - 1]
    return sorted(strongest.tolist())


def _score(graph: AttributionGraph, report: ScoreReport, top: int, console: Console) -> list[RenderableType]:
    parts: list[RenderableType] = [_pattern(graph, report), _nodes(graph, report, console)]
    if report.ablations:
        parts += [_ablations(graph, report, console)]
    parts.append(_pairs(graph, report, top, console))
    if report.groups is not None:
        parts.append(_groups(report))
    return parts


def _pattern(graph: AttributionGraph, report: ScoreReport) -> Table:
    scores = report.scores
    table = plain_table(f"L{scores.layer}.H{scores.head} at {_position(graph, scores.query)}: where it looks")
    add_words(table, "key")
    add_numbers(table, "score", "attention")
    add_words(table)
    likely = scores.probabilities.argsort(descending=True)[:_KEYS].tolist()
    asked = {report.key, report.rather_than} - {None}
    shown = sorted({*likely, *(key - scores.keys.start for key in asked if key is not None)})
    values, shares = scores.scores.tolist(), scores.probabilities.tolist()
    for i in shown:
        key = scores.keys[i]
        name = Text(_position(graph, key, 24), style="bold" if key in asked else "")
        add_row(table, name, signed(values[i]), probability(shares[i]), Text("█" * round(24 * shares[i]), style="cyan"))
    if len(shown) < len(scores.keys):
        table.caption = Text(f"{len(scores.keys) - len(shown)} more keys")
    return table


def _what(graph: AttributionGraph, report: ScoreReport) -> str:
    name = _position(graph, report.key)
    if report.rather_than is None:
        return f"why {name}: score {signed(report.terms.score)}"
    return f"why {name} rather than {_position(graph, report.rather_than)}: {signed(report.terms.score)}"


def _nodes(graph: AttributionGraph, report: ScoreReport, console: Console) -> Table:
    table = plain_table(f"Nodes, {_what(graph, report)}")
    add_words(table, "node")
    add_numbers(table, "as\nquery", "as\nkey", "norms'\nresponse", "log A")
    terms, logs = report.terms, report.log_attention.both
    for node in report.nodes:
        response = float(terms.query_response[node] + terms.key_response[node])
        values = [float(terms.query_marginals[node]), float(terms.key_marginals[node]), response, float(logs[node])]
        name = _name(graph, node, _cells(console, 42))
        add_row(table, name, *(coloured(signed(value), value) for value in values))
    return table


def _ablations(graph: AttributionGraph, report: ScoreReport, console: Console) -> Table:
    table = plain_table(f"Without a node: change of log attention to {_position(graph, report.key)}")
    add_words(table, "without")
    add_numbers(table, "predicted", "measured", "with norms'\nresponse", "norms\nfree")
    for node, check in report.ablations.items():
        changes = (check.predicted, check.measured, check.predicted_response, check.measured_free)
        values = [one.log_probability for one in changes]
        cells = [coloured(signed(value), value) if math.isfinite(value) else Text("–") for value in values]
        add_row(table, _name(graph, node, _cells(console, 50)), *cells)
    return table


def _pairs(graph: AttributionGraph, report: ScoreReport, top: int, console: Console) -> Table:
    table = plain_table("Strongest pairs")
    add_words(table, "query side")
    add_words(table, "key side")
    add_numbers(table, "term")
    cells = _cells(console, 14, 68) // 2
    for query, key, term in report.terms.strongest_pairs(top):
        add_row(table, _name(graph, query, cells), _name(graph, key, cells), coloured(signed(term), term))
    return table


def _groups(report: ScoreReport) -> Table:
    assert report.groups is not None
    names, summed = report.groups
    table = plain_table("Supernodes (query side below, key side across)")
    add_words(table)
    add_numbers(table, *(short(name, 12) for name in names), "others")
    for name, row in zip([*names, "others"], summed.tolist(), strict=True):
        add_row(table, short(name, 20), *(coloured(signed(value), value) for value in row))
    return table
