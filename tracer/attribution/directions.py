"""What each feature of a graph writes, as one direction."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray

from crosstrace.graphs import AttributionGraph
from crosstrace.replacement_model import ReplacementModel


def decoder_directions(model: ReplacementModel, graph: AttributionGraph) -> dict[tuple[int, int], NDArray[np.float32]]:
    """Return what the decoder of each feature that pruning kept writes, summed over layers.

    The sum over layers is what a cross-layer feature has added to the residual stream by the last layer.

    Args:
        model: The model and transcoders of the graph.
        graph: Raw or pruned.

    Returns:
        For each (layer, feature) a vector (D,).

    Raises:
        ValueError: The graph is of other transcoders.

    Example:
        >>> groups = suggest_supernodes(pruned, directions=decoder_directions(model, pruned))
    """
    if model.transcoders.name != graph.transcoders_name:
        raise ValueError(
            f"the graph was traced with transcoders {graph.transcoders_name!r}, not with {model.transcoders.name!r}"
        )
    wanted: dict[int, set[int]] = defaultdict(set)
    for node in graph.kept_nodes():
        if graph.layout.kind(node) == "feature":
            layer, feature = graph.feature_key(node)
            wanted[layer].add(feature)
    directions: dict[tuple[int, int], NDArray[np.float32]] = {}
    for layer, features in sorted(wanted.items()):
        ordered = torch.tensor(sorted(features), device=model.transcoders.device)
        written_nd = model.transcoders.decoder_rows(layer, ordered).float().sum(1).cpu().numpy()
        directions |= {(layer, int(feature)): row for feature, row in zip(ordered, written_nd, strict=True)}
    return directions
