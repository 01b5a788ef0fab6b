"""A graph's nodes in the model that it was traced in: as sources that can be swept up, as targets that can be swept down.

Letters: N active features, n nodes, L layers, P positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from crosstrace.graphs import AttributionGraph
from crosstrace.graphs.analysis.flow import places
from crosstrace.graphs.analysis.pruning import check_whole
from crosstrace.replacement_model import ReplacementModel, Target
from crosstrace.replacement_model.local.sources import Source, error_source, feature_sources, token_source
from crosstrace.tracer.weights import Note, check_graph_weights

_FEATURE_TARGET = re.compile(r"L(\d+)/(\d+)@\d+(?:, not active there)?$")


class TracedPrompt:
    """The prompt of a graph, run again in its model.

    Attributes:
        graph: The graph, raw or pruned.
        model: The model, with the graph's number of excluded first positions.
        local: The prompt's local replacement model.
    """

    def __init__(self, model: ReplacementModel, graph: AttributionGraph, note: Note | None = None) -> None:
        """Run the prompt.

        Args:
            model: The model and transcoders of the graph.
            graph: Raw or pruned.
            note: Called with one line if the graph is from before fingerprints could tell that these are its weights.

        Raises:
            ValueError: The graph is of other weights, in another dtype, was read from JSON, or other features are active in
                its prompt.
        """
        check_whole(graph, "a comparison with the model")
        excluded = graph.settings.get("excluded_first")
        model = model if excluded is None else model.excluding(int(excluded))
        check_graph_weights(model, graph, note)
        self.graph, self.model, self.local = graph, model, model.local(graph.tokens)

    @cached_property
    def entries(self) -> NDArray[np.int64]:
        """(K,) where each feature node is among the prompt's active features.

        Raises:
            ValueError: One of them is not active.
        """
        graph = self.graph
        if torch.equal(self.local.activations.indices.cpu(), graph.active_features):
            return graph.selected_features.numpy()
        # Rounding on another machine may flip a feature that is exactly at its threshold.
        found = {tuple(key): i for i, key in enumerate(self.local.activations.indices.tolist())}
        wanted = [tuple(graph.feature_of(node)[i] for i in (0, 1, 2)) for node in range(graph.layout.n_features)]
        missing = [key for key in wanted if key not in found]
        if missing:
            layer, position, feature = missing[0]
            raise ValueError(
                f"L{layer}/{feature}@{position} of the graph is not active in {self.model.name} with "
                f"{self.model.transcoders.name}: give the graph's own --model and --transcoders"
            )
        return np.array([found[key] for key in wanted], dtype=np.int64)

    @cached_property
    def node_layers(self) -> NDArray[np.int64]:
        """(n,) the layer of each node: what a source writes first, -1 for tokens; for targets the layer that they read."""
        return self._places[0]

    @cached_property
    def node_positions(self) -> NDArray[np.int64]:
        """(n,) the position of each node."""
        return self._places[1]

    @cached_property
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        layout = self.graph.layout
        layers, positions = places(self.graph)
        layers[layout.tokens], layers[layout.logits] = -1, self.graph.logit_layers.numpy()
        return layers, positions

    def sources(self, nodes: NDArray[np.int64]) -> Iterator[Source]:
        """Yield nodes as sources.

        Args:
            nodes: Ascending, no targets among them.
        """
        layout, record = self.graph.layout, self.local.adjoint.record
        features = nodes[nodes < layout.features.stop]
        yield from feature_sources(record, torch.from_numpy(self.entries[features]))
        for node in nodes[len(features) :].tolist():
            if layout.kind(node) == "error":
                yield error_source(record, *layout.error_of(node))
            else:
                yield token_source(record, layout.token_of(node))

    def sources_of(self, entries_n: torch.Tensor) -> Iterator[Source]:
        """Yield active features as sources, whether or not they have a node.

        Args:
            entries_n: (n,) int64 ascending indices into the prompt's active features.
        """
        yield from feature_sources(self.local.adjoint.record, entries_n)

    def targets(self, nodes: Sequence[int]) -> list[Target]:
        """Return nodes as targets, in the order given.

        Args:
            nodes: Features and targets of the graph.

        Raises:
            ValueError: A target of the graph is a direction, whose vector no graph holds.
        """
        features = sorted({node for node in nodes if node < self.graph.layout.features.stop})
        found = dict(zip(features, self.local.feature_targets(torch.from_numpy(self.entries[features])), strict=True))
        return [found[node] if node in found else self._graph_target(node) for node in nodes]

    @property
    def knows_targets(self) -> bool:
        """Whether what the graph's targets read can be told; not of directions, whose vectors no graph holds."""
        try:
            self.targets(range(self.graph.layout.logits.start, self.graph.n))
        except ValueError:
            return False
        return True

    def _graph_target(self, node: int) -> Target:
        graph = self.graph
        i = graph.layout.logit_of(node)
        position, token = int(graph.logit_positions[i]), int(graph.logit_tokens[i])
        if token >= 0:
            return self.local.logit_target({token: 1.0}, position)
        if pair := graph.settings.get("contrasts", {}).get(str(i)):
            return self.local.logit_target({int(pair[0]): 1.0, int(pair[1]): -1.0}, position)
        layer = int(graph.logit_layers[i])
        if (feature := _FEATURE_TARGET.search(graph.logit_strings[i])) and int(feature[1]) == layer:
            return self.local.feature_target(layer, position, int(feature[2]))
        raise ValueError(
            f"target {graph.target_name(i)!r} is neither a token, a feature nor a contrast traced by this version: what it "
            "reads is not in the graph"
        )
