"""What a node and an edge of one graph weigh, so that graphs can be compared: shares of the influence on its targets.

All targets together are the whole, each by its weight. What a cap on features left out counts as input (see
`graphs/analysis/flow.py`), so the shares of tokens, errors and what was left out add up to 1.

Letters: n nodes.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

from crosstrace.graphs.analysis.influence import row_scale, spread, target_weights
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.sparse_rows import Floats


def node_shares(graph: AttributionGraph) -> Floats:
    """Return (n,) the share of the influence on all targets that passes through each node; of a target its weight.

    Example:
        >>> node_shares(graph)[graph.layout.logits].sum()
        1.0
    """
    return _through(graph)[0]


def edge_shares(graph: AttributionGraph) -> scipy.sparse.csr_array:
    """Return (n, n) float64 the share of the influence on all targets that passes along each edge."""
    through, scale = _through(graph)
    edges = graph.edges
    flow = np.abs(edges.data.astype(np.float64)) * np.repeat(through * scale, np.diff(edges.indptr))
    return scipy.sparse.csr_array((flow, edges.indices, edges.indptr), shape=edges.shape)


def shares_by_target(graph: AttributionGraph) -> list[Floats]:
    """Return for each target (n,) what of each node's share is influence on that target: they add up to `node_shares`."""
    weights = target_weights(graph)
    total = weights.sum() or 1.0
    scale = _scale(graph)
    found = []
    for node in range(graph.layout.logits.start, graph.layout.logits.stop):
        alone = np.zeros(graph.n)
        alone[node] = weights[node] / total
        found.append(spread(graph.edges, scale, alone) + alone)
    return found


def _through(graph: AttributionGraph) -> tuple[Floats, Floats]:
    weights = target_weights(graph)
    if (total := weights.sum()) > 0:
        weights = weights / total
    scale = _scale(graph)
    return spread(graph.edges, scale, weights) + weights, scale


def _scale(graph: AttributionGraph) -> Floats:
    return row_scale(graph.edges, np.abs(graph.omitted_magnitude.double().numpy()))
