"""The stories of a page: what leads to each of its targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crosstrace.graphs.analysis.similarity import Cards
from crosstrace.graphs.analysis.story import Story, StoryNode, story_of
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.page.contents import PageStory, PageStoryNode

MOST_STORIES = 10
_MOST_OF_ANSWER = 40
_DIGITS = 5


def page_stories(
    graph: AttributionGraph,
    cards: Cards | None,
    groups: Sequence[tuple[str, Sequence[int]]],
    on_page: Mapping[int, str],
) -> list[PageStory]:
    """Return the story of each target, the weightiest first; of more than ten targets those with the most weight, of an
    answer its first forty tokens.

    Args:
        graph: Pruned.
        cards: For (layer, feature), what is known of it.
        groups: (name, nodes) pairs, as `suggest_supernodes` returns them.
        on_page: The id of each node that the page holds.
    """
    weights = graph.logit_probabilities.tolist()
    most = MOST_STORIES if graph.spans is None or graph.spans.answer is None else _MOST_OF_ANSWER
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))[:most]
    targets = [graph.layout.logit_index(i) for i in order]
    return [_page_story(story_of(graph, cards, target, groups), on_page) for target in targets]


def _page_story(story: Story, on_page: Mapping[int, str]) -> PageStory:
    flow = story.flow
    return {
        "target": on_page[story.target],
        "nodes": [_page_node(node, on_page) for node in story.nodes],
        "edges": [[edge.source, edge.target, _rounded(edge.weight), _rounded(edge.share)] for edge in story.edges],
        "entering": [_rounded(value) for value in flow.entering.tolist()],
        "lost": [_rounded(value) for value in flow.unexplained_at.tolist()],
        "unexplained": flow.unexplained,
        "moves": [[move.source, move.target, _rounded(move.share), *move.layers] for move in flow.moves()],
        "covered": story.covered,
        "leftOut": story.left_out,
        "cutEdges": story.cut_edges,
    }


def _page_node(node: StoryNode, on_page: Mapping[int, str]) -> PageStoryNode:
    return {
        "kind": node.kind,
        "name": node.name,
        "ids": [on_page[member] for member in node.members if member in on_page],
        "position": node.position,
        "layers": list(node.layers),
        "layer": _rounded(node.layer),
        "influence": _rounded(node.influence),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
