"""Attribution graphs: node layout, pruning, scores, paths, files. Knows nothing of models.

Names are loaded when first used, so that importing a light module of the package need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosstrace.graphs.card_json import export_cards
    from crosstrace.graphs.comparison import GraphComparison, compare, write_comparison
    from crosstrace.graphs.comparison_page import write_comparison_html
    from crosstrace.graphs.defaults import EDGE_THRESHOLD, NODE_THRESHOLD
    from crosstrace.graphs.dot_export import to_pydot, write_dot
    from crosstrace.graphs.drawing import Figure
    from crosstrace.graphs.feature_cards import FeatureCards, with_card_labels
    from crosstrace.graphs.files import write_atomically
    from crosstrace.graphs.formats import FIGURES, SUFFIXES, check_suffix, read_graph, write_graph
    from crosstrace.graphs.graph import AttributionGraph
    from crosstrace.graphs.graphml_export import write_graphml
    from crosstrace.graphs.json_export import write_json
    from crosstrace.graphs.layout import NodeLayout
    from crosstrace.graphs.networkx_export import to_networkx
    from crosstrace.graphs.page_export import view, write_html
    from crosstrace.graphs.paths import Path, along_strongest_paths, strongest_paths
    from crosstrace.graphs.pruning import check_threshold, prune
    from crosstrace.graphs.rendering import GraphvizMissing, render
    from crosstrace.graphs.restricting import restricted
    from crosstrace.graphs.saved_state import SavedState, check_state, read_state
    from crosstrace.graphs.scores import GraphScores, graph_scores
    from crosstrace.graphs.supernodes import suggest_supernodes

_HOMES = {
    "card_json": ("export_cards",),
    "comparison": ("GraphComparison", "compare", "write_comparison"),
    "comparison_page": ("write_comparison_html",),
    "defaults": ("EDGE_THRESHOLD", "NODE_THRESHOLD"),
    "dot_export": ("to_pydot", "write_dot"),
    "drawing": ("Figure",),
    "feature_cards": ("FeatureCards", "with_card_labels"),
    "files": ("write_atomically",),
    "formats": ("FIGURES", "SUFFIXES", "check_suffix", "read_graph", "write_graph"),
    "graph": ("AttributionGraph",),
    "graphml_export": ("write_graphml",),
    "json_export": ("write_json",),
    "layout": ("NodeLayout",),
    "networkx_export": ("to_networkx",),
    "page_export": ("view", "write_html"),
    "paths": ("Path", "along_strongest_paths", "strongest_paths"),
    "pruning": ("check_threshold", "prune"),
    "rendering": ("GraphvizMissing", "render"),
    "restricting": ("restricted",),
    "saved_state": ("SavedState", "check_state", "read_state"),
    "scores": ("GraphScores", "graph_scores"),
    "supernodes": ("suggest_supernodes",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "EDGE_THRESHOLD",
    "FIGURES",
    "NODE_THRESHOLD",
    "SUFFIXES",
    "AttributionGraph",
    "FeatureCards",
    "Figure",
    "GraphComparison",
    "GraphScores",
    "GraphvizMissing",
    "NodeLayout",
    "Path",
    "SavedState",
    "along_strongest_paths",
    "check_state",
    "check_suffix",
    "check_threshold",
    "compare",
    "export_cards",
    "graph_scores",
    "prune",
    "read_graph",
    "read_state",
    "render",
    "restricted",
    "strongest_paths",
    "suggest_supernodes",
    "to_networkx",
    "to_pydot",
    "view",
    "with_card_labels",
    "write_atomically",
    "write_comparison",
    "write_comparison_html",
    "write_dot",
    "write_graph",
    "write_graphml",
    "write_html",
    "write_json",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
