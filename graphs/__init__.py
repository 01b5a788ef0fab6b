"""Attribution graphs: node layout, pruning, scores, paths, files. Knows nothing of models.

Names are loaded when first used, so that importing a light module of the package need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosstrace.graphs.analysis.comparison import GraphComparison, compare, write_comparison
    from crosstrace.graphs.analysis.paths import Path, along_strongest_paths, strongest_paths
    from crosstrace.graphs.analysis.pruning import check_threshold, prune
    from crosstrace.graphs.analysis.scores import GraphScores, graph_scores
    from crosstrace.graphs.analysis.subgraphs import restricted
    from crosstrace.graphs.analysis.supernodes import suggest_supernodes
    from crosstrace.graphs.cards.feature_cards import FeatureCards, with_card_labels
    from crosstrace.graphs.cards.neuronpedia import export_cards
    from crosstrace.graphs.defaults import EDGE_THRESHOLD, NODE_THRESHOLD
    from crosstrace.graphs.exporters.graphml import write_graphml
    from crosstrace.graphs.exporters.networkx_graph import to_networkx
    from crosstrace.graphs.exporters.neuronpedia import write_json
    from crosstrace.graphs.files import write_atomically
    from crosstrace.graphs.formats import FIGURES, SUFFIXES, check_suffix, read_graph, write_graph
    from crosstrace.graphs.graph import AttributionGraph
    from crosstrace.graphs.layout import NodeLayout
    from crosstrace.graphs.page.comparison import write_comparison_html
    from crosstrace.graphs.page.export import view, write_html
    from crosstrace.graphs.pictures.dot import to_pydot, write_dot
    from crosstrace.graphs.pictures.figure import Figure
    from crosstrace.graphs.pictures.graphviz import GraphvizMissing, render
    from crosstrace.graphs.saved_state import SavedState, check_state, read_state

_HOMES = {
    "cards.neuronpedia": ("export_cards",),
    "analysis.comparison": ("GraphComparison", "compare", "write_comparison"),
    "page.comparison": ("write_comparison_html",),
    "defaults": ("EDGE_THRESHOLD", "NODE_THRESHOLD"),
    "pictures.dot": ("to_pydot", "write_dot"),
    "pictures.figure": ("Figure",),
    "cards.feature_cards": ("FeatureCards", "with_card_labels"),
    "files": ("write_atomically",),
    "formats": ("FIGURES", "SUFFIXES", "check_suffix", "read_graph", "write_graph"),
    "graph": ("AttributionGraph",),
    "exporters.graphml": ("write_graphml",),
    "exporters.neuronpedia": ("write_json",),
    "layout": ("NodeLayout",),
    "exporters.networkx_graph": ("to_networkx",),
    "page.export": ("view", "write_html"),
    "analysis.paths": ("Path", "along_strongest_paths", "strongest_paths"),
    "analysis.pruning": ("check_threshold", "prune"),
    "pictures.graphviz": ("GraphvizMissing", "render"),
    "analysis.subgraphs": ("restricted",),
    "saved_state": ("SavedState", "check_state", "read_state"),
    "analysis.scores": ("GraphScores", "graph_scores"),
    "analysis.supernodes": ("suggest_supernodes",),
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
