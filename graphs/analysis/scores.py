"""How much of the model's computation a graph explains.

Ameisen et al. 2025, "Circuit Tracing", section on evaluating attribution graphs: replacement and completeness scores.
Deviation: what a cap on the number of features leaves out (`omitted_magnitude`) counts as an error source of its row.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from crosstrace.graphs.analysis.influence import row_scale, spread, target_weights
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.notebook import table
from crosstrace.graphs.numbers import count, probability
from crosstrace.graphs.origins.json_origin import WHOLE
from crosstrace.graphs.sparse_rows import keep, row_sums


class GraphScores(NamedTuple):
    """How much of the model a graph explains: both between 0 and 1; 1 means that nothing runs through errors.

    Both are NaN where there is nothing to explain.
    """

    replacement: float
    """Share of the influence on the targets that ends in tokens rather than in errors."""
    completeness: float
    """Share of incoming weight that does not come from errors, averaged over nodes by their influence."""

    def _repr_html_(self) -> str:
        """A table of the two, for notebooks."""
        return table(
            "",
            ("score", "value", ""),
            [
                ("replacement", _shown(self.replacement), "of the influence ends in tokens rather than in errors"),
                ("completeness", _shown(self.completeness), "of the incoming weight does not come from errors"),
            ],
        )


def _shown(score: float) -> str:
    return "–" if math.isnan(score) else probability(score)


def untraced(graph: AttributionGraph) -> int:
    """Return how many active features got no row: a cap left them out, and the scores count them as errors.

    With them, both scores would be as high or higher: what flows through such a feature would end in tokens in part.
    """
    origin = graph.json_origin
    if origin is not None:
        return max((origin.n_active or 0) - (origin.n_traced or 0), 0)
    return len(graph.active_features) - len(graph.selected_features)


def what_scores_count(graph: AttributionGraph) -> str:
    """Say in words what `graph_scores` of a graph is computed on.

    Of a graph that was read from JSON it is what the file says; "" where it says nothing.

    Example:
        >>> what_scores_count(prune(graph))
        'what pruning kept; 2,256 of 2,768 active features were not traced and count as errors'
    """
    if (origin := graph.json_origin) is not None:
        return str((origin.scores or {}).get("counted") or "")
    of = WHOLE if graph.node_mask is None else "what pruning kept"
    if not (left_out := untraced(graph)):
        return of
    verb = "was not traced and counts as an error" if left_out == 1 else "were not traced and count as errors"
    return f"{of}; {left_out:,} of {count(len(graph.active_features), 'active feature')} {verb}"


def graph_scores(graph: AttributionGraph) -> GraphScores:
    """Return (replacement, completeness).

    Replacement is the share of the influence on the targets, followed to its end, that ends in tokens rather than in
    errors. Completeness is the share of incoming weight that does not come from errors, averaged over all nodes with
    (influence + target weight) as weights; it gives partial credit for paths that end in an error late.

    On a pruned graph the scores are those of what the masks keep: dropped edges count as absent and the rows are
    normalised again, as other tools do; compare pruned graphs only at equal thresholds. `omitted_magnitude` is not
    pruned: it stays whole in every row.

    Where no edge comes from a feature or an error, the graph explains nothing: both scores are NaN. So they are of a
    prompt whose positions are all excluded, and of a graph without any influence.

    Of a graph that was read from JSON they are those that the file holds, NaN where it holds none: they cannot be computed
    from what pruning kept.

    Example:
        >>> replacement, completeness = graph_scores(graph)
        >>> 0 <= replacement <= completeness <= 1
        True
    """
    if graph.json_origin is not None:
        said = graph.json_origin.scores or {}
        return GraphScores(*(math.nan if (value := said.get(name)) is None else value for name in GraphScores._fields))
    layout, weights, edges = graph.layout, target_weights(graph), graph.kept_edges()
    omitted = graph.omitted_magnitude.double().abs().numpy()
    scale = row_scale(edges, extra=omitted)
    influence = spread(edges, scale, weights)
    arriving = influence + weights

    if not ((edges.indices < layout.errors.stop).any() or omitted.any()):
        return GraphScores(math.nan, math.nan)
    errors = (edges.indices >= layout.errors.start) & (edges.indices < layout.errors.stop)
    error_share = (row_sums(keep(edges, errors), absolute=True) + omitted) * scale
    into_errors = float(arriving @ error_share)
    into_tokens = float(influence[layout.tokens].sum())
    ended, total = into_errors + into_tokens, float(arriving.sum())
    if ended == 0 or total == 0:
        return GraphScores(math.nan, math.nan)
    return GraphScores(into_tokens / ended, 1 - into_errors / total)
