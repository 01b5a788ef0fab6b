from .aggregates.circuit import Aggregate as Aggregate
from .aggregates.circuit import AggregateEdge as AggregateEdge
from .aggregates.circuit import AggregateNode as AggregateNode
from .aggregates.circuit import Stability as Stability
from .aggregates.groups import Comparison as Comparison
from .aggregates.groups import NodeDifference as NodeDifference
from .aggregates.groups import compare_groups as compare_groups
from .analysis.answers import answer_targets as answer_targets
from .analysis.answers import of_answer as of_answer
from .analysis.answers import without_template as without_template
from .analysis.comparison import GraphComparison as GraphComparison
from .analysis.comparison import compare as compare
from .analysis.comparison import write_comparison as write_comparison
from .analysis.defaults import EDGE_THRESHOLD as EDGE_THRESHOLD
from .analysis.defaults import NODE_THRESHOLD as NODE_THRESHOLD
from .analysis.flow import Flow as Flow
from .analysis.flow import flow_to as flow_to
from .analysis.influence import row_scale as row_scale
from .analysis.influence import spread as spread
from .analysis.influence import target_weights as target_weights
from .analysis.paths import Path as Path
from .analysis.paths import Paths as Paths
from .analysis.paths import along_strongest_paths as along_strongest_paths
from .analysis.paths import strongest_paths as strongest_paths
from .analysis.paths import trivial_share as trivial_share
from .analysis.pruning import check_threshold as check_threshold
from .analysis.pruning import cumulative_influence as cumulative_influence
from .analysis.pruning import prune as prune
from .analysis.pruning import unpruned as unpruned
from .analysis.scores import GraphScores as GraphScores
from .analysis.scores import graph_scores as graph_scores
from .analysis.story import Story as Story
from .analysis.story import StoryEdge as StoryEdge
from .analysis.story import StoryNode as StoryNode
from .analysis.story import story_of as story_of
from .analysis.subgraphs import restricted as restricted
from .analysis.supernodes import suggest_supernodes as suggest_supernodes
from .attention.kept import AttentionPlaces as AttentionPlaces
from .attention.kept import GraphAttention as GraphAttention
from .attention.kept import HeadLoadings as HeadLoadings
from .cards.feature_cards import FeatureCard as FeatureCard
from .cards.feature_cards import FeatureCards as FeatureCards
from .cards.feature_cards import with_card_labels as with_card_labels
from .cards.neuronpedia import export_cards as export_cards
from .cards.weights import FeatureWeights as FeatureWeights
from .cards.weights import WeightLink as WeightLink
from .conversations.spans import Spans as Spans
from .exporters.graphml import write_graphml as write_graphml
from .exporters.networkx_graph import to_networkx as to_networkx
from .exporters.neuronpedia import write_json as write_json
from .files import write_atomically as write_atomically
from .formats import (
    FIGURES as FIGURES,
)
from .formats import (
    PAGES as PAGES,
)
from .formats import (
    SUFFIXES as SUFFIXES,
)
from .formats import (
    Export as Export,
)
from .formats import (
    check_suffix as check_suffix,
)
from .formats import (
    read_graph as read_graph,
)
from .formats import (
    read_whole_graph as read_whole_graph,
)
from .formats import (
    register_exporter as register_exporter,
)
from .formats import (
    unregister_exporter as unregister_exporter,
)
from .formats import (
    write_graph as write_graph,
)
from .graph import AttributionGraph as AttributionGraph
from .layout import NodeLayout as NodeLayout
from .origins.json_origin import JsonOrigin as JsonOrigin
from .page.comparison import write_comparison_html as write_comparison_html
from .page.export import view as view
from .page.export import write_html as write_html
from .page.limits import PageLimits as PageLimits
from .pictures.dot import to_pydot as to_pydot
from .pictures.dot import write_dot as write_dot
from .pictures.figure import Figure as Figure
from .pictures.graphviz import GraphvizMissing as GraphvizMissing
from .pictures.graphviz import graphviz_program as graphviz_program
from .pictures.graphviz import render as render
from .readers.json_graph import InexpressibleError as InexpressibleError
from .readers.json_graph import graph_from_json as graph_from_json
from .saved_state import SavedState as SavedState
from .saved_state import check_state as check_state
from .saved_state import read_origin as read_origin
from .saved_state import read_state as read_state
from .viewer_ids import node_ids as node_ids
