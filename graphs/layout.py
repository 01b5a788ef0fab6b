"""The order of a graph's nodes, in one place: all other code asks a `NodeLayout`.

Letters: K selected features, L layers, P positions, k targets ("logit" nodes), n = K + L·P + P + k nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NodeKind = Literal["feature", "error", "token", "logit"]
"""What a node stands for; a "logit" is any target."""


@dataclass(frozen=True)
class NodeLayout:
    """K selected features, then L·P error nodes layer by layer, then P tokens, then k logits.

    Attributes:
        n_features: K.
        n_layers: L.
        n_positions: P.
        n_logits: k.

    Example:
        >>> layout = NodeLayout(n_features=3, n_layers=2, n_positions=4, n_logits=1)
        >>> layout.kind(layout.error_index(layer=1, position=2)), layout.n
        ('error', 16)
    """

    n_features: int
    n_layers: int
    n_positions: int
    n_logits: int

    @property
    def n_errors(self) -> int:
        """L·P."""
        return self.n_layers * self.n_positions

    @property
    def n_sources(self) -> int:
        """Nodes that can be the source of an edge: all but the logits."""
        return self.n_features + self.n_errors + self.n_positions

    @property
    def n(self) -> int:
        """All nodes."""
        return self.n_sources + self.n_logits

    @property
    def features(self) -> slice:
        """The feature nodes."""
        return slice(0, self.n_features)

    @property
    def errors(self) -> slice:
        """The error nodes."""
        return slice(self.n_features, self.n_features + self.n_errors)

    @property
    def tokens(self) -> slice:
        """The token nodes."""
        return slice(self.n_features + self.n_errors, self.n_sources)

    @property
    def logits(self) -> slice:
        """The target nodes."""
        return slice(self.n_sources, self.n)

    def feature_index(self, i: int) -> int:
        """Return the node of the i-th selected feature.

        Raises:
            IndexError: There is no such feature.
        """
        return _within(i, self.n_features, "selected feature")

    def error_index(self, layer: int, position: int) -> int:
        """Return the error node of a layer at a position.

        Raises:
            IndexError: There is no such layer or position.
        """
        layer = _within(layer, self.n_layers, "layer")
        return self.n_features + layer * self.n_positions + _within(position, self.n_positions, "position")

    def token_index(self, position: int) -> int:
        """Return the token node at a position.

        Raises:
            IndexError: There is no such position.
        """
        return self.n_features + self.n_errors + _within(position, self.n_positions, "position")

    def logit_index(self, i: int) -> int:
        """Return the node of the i-th target.

        Raises:
            IndexError: There is no such target.
        """
        return self.n_sources + _within(i, self.n_logits, "logit")

    def kind(self, node: int) -> NodeKind:
        """Return what a node stands for.

        Raises:
            IndexError: There is no such node.
        """
        node = _within(node, self.n, "node")
        if node < self.errors.start:
            return "feature"
        if node < self.tokens.start:
            return "error"
        return "token" if node < self.logits.start else "logit"

    def feature_of(self, node: int) -> int:
        """Return which selected feature a feature node is: an index into `selected_features`.

        Raises:
            IndexError: There is no such node.
            ValueError: The node is of another kind.
        """
        return self._of(node, "feature", self.features)

    def error_of(self, node: int) -> tuple[int, int]:
        """Return (layer, position) of an error node.

        Raises:
            IndexError: There is no such node.
            ValueError: The node is of another kind.
        """
        layer, position = divmod(self._of(node, "error", self.errors), self.n_positions)
        return layer, position

    def token_of(self, node: int) -> int:
        """Return the position of a token node.

        Raises:
            IndexError: There is no such node.
            ValueError: The node is of another kind.
        """
        return self._of(node, "token", self.tokens)

    def logit_of(self, node: int) -> int:
        """Return which target a logit node is.

        Raises:
            IndexError: There is no such node.
            ValueError: The node is of another kind.
        """
        return self._of(node, "logit", self.logits)

    def _of(self, node: int, kind: NodeKind, part: slice) -> int:
        if (found := self.kind(node)) != kind:
            raise ValueError(f"node {node} is of kind {found}, not of kind {kind}")
        return node - part.start


def _within(index: int, size: int, what: str) -> int:
    # Negative indices are refused too: they would silently land in the block before.
    if not 0 <= index < size:
        raise IndexError(f"{what} {index} is out of range: there are {size}")
    return int(index)
