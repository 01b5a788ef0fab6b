"""Subgraphs: masks that keep only some nodes and edges of what pruning kept.

Letters: n nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
import torch

from crosstrace.graphs.analysis.pruning import cumulative_influence
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.sparse_rows import keep, rows_of


def restricted(
    graph: AttributionGraph, nodes: Collection[int], edges: Collection[tuple[int, int]] | None = None
) -> AttributionGraph:
    """Return the graph with masks that keep only `nodes`, and only `edges` between them; edges are shared, not copied.

    What the graph's own masks drop stays dropped.

    Args:
        graph: Raw or pruned.
        nodes: Numbers in the graph's node order.
        edges: (source, target) pairs; None for all between `nodes`.

    Raises:
        ValueError: The graph does not have one of the nodes.

    Example:
        >>> restricted(pruned, nodes=[3, 17, 240]).kept_nodes()
        [3, 17, 240]
    """
    wanted = np.zeros(graph.n, dtype=np.bool_)
    for node in nodes:
        if not 0 <= node < graph.n:
            raise ValueError(f"the graph has no node {node}: its nodes are 0 to {graph.n - 1}")
        wanted[node] = True
    if graph.node_mask is not None:
        wanted &= graph.node_mask.numpy()
    # An edge mask holds ones only, and exactly the edges that are kept.
    held = graph.edges if graph.edge_mask_sparse is None else graph.edge_mask_sparse
    targets, sources = rows_of(held), held.indices
    alive = wanted[targets] & wanted[sources]
    if edges is not None:
        pairs = np.array(sorted({target * graph.n + source for source, target in edges}), dtype=np.int64)
        alive &= np.isin(targets.astype(np.int64) * graph.n + sources, pairs)
    mask = keep(held, alive)
    mask.data = np.ones(mask.nnz, dtype=np.bool_)
    return dataclasses.replace(
        graph, node_mask=torch.from_numpy(wanted), edge_mask_sparse=mask, influence=cumulative_influence(graph)
    )
