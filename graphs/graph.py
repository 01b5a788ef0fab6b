"""The attribution graph of one prompt (Ameisen et al. 2025, "Circuit Tracing").

Letters: N active features, K selected features, L layers, P positions, k targets, n = K + L·P + P + k nodes.
Edges are stored as sparse rows: at 50,000 nodes a dense n × n would not fit. `adjacency` is dense for small graphs.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse
import torch

from crosstrace.graphs.attention.kept import GraphAttention
from crosstrace.graphs.conversations.spans import Spans, spans_of
from crosstrace.graphs.layout import NodeLayout
from crosstrace.graphs.notebook import as_html
from crosstrace.graphs.numbers import count, probability
from crosstrace.graphs.origins.json_origin import JsonOrigin, json_origin_of
from crosstrace.graphs.sparse_rows import canonical, mask_as_csr, row_sums
from crosstrace.graphs.storage import csr_names, csr_of, csr_tensors, read_values, write_values
from crosstrace.graphs.text import distinct, marked, short

_ATTENTION_PREFIX = "attention."
_LENGTHS = {"N": "active_features", "K": "selected_features", "P": "tokens", "k": "logit_tokens"}


def _tensor(dtype: torch.dtype, *shape: str | int) -> Mapping[str, Any]:
    """What a tensor field has to be; letters as in this module's first lines."""
    return {"kind": "tensor", "dtype": dtype, "shape": shape}


def _strings(length: str) -> Mapping[str, Any]:
    return {"kind": "strings", "shape": (length,)}


_ATTENTION: Mapping[str, Any] = {"kind": "attention"}
_SPARSE: Mapping[str, Any] = {"kind": "sparse", "shape": ("n", "n")}


@dataclass(eq=False)
class AttributionGraph:
    """Direct effects between features, error nodes, tokens and targets of one prompt.

    `edges[target, source]` is the direct effect of a source on a target through the local replacement model, in the
    units of the target (pre-activation of a feature, centred logit). For the node order see `NodeLayout`. Targets
    ("logit" nodes) are output logits, or whatever else was traced: a contrast, a residual vector, a feature.
    Tensors are moved to the CPU and converted to the types below.

    Raises:
        ValueError: A field has the wrong shape, or holds NaN or infinity; the message names it.

    Example:
        >>> graph = AttributionGraph.load("raw.safetensors")
        >>> graph.completeness_error() < 1e-5
        True
    """

    active_features: torch.Tensor = field(metadata=_tensor(torch.int64, "N", 3))
    """(N, 3) int64: (layer, position, feature), ascending."""
    activations: torch.Tensor = field(metadata=_tensor(torch.float32, "N"))
    """(N,) float32: activation of each active feature."""
    selected_features: torch.Tensor = field(metadata=_tensor(torch.int64, "K"))
    """(K,) int64: rows of `active_features` that are nodes, ascending."""
    tokens: torch.Tensor = field(metadata=_tensor(torch.int64, "P"))
    """(P,) int64: token ids of the prompt; -1 where the JSON that the graph was read from does not say."""
    token_strings: list[str] = field(metadata=_strings("P"))
    """P strings: the text of each token."""
    logit_tokens: torch.Tensor = field(metadata=_tensor(torch.int64, "k"))
    """(k,) int64: token of each target; -1 where the target is not a single token."""
    logit_strings: list[str] = field(metadata=_strings("k"))
    """k strings: the text of each target's token, or the name of the target."""
    logit_probabilities: torch.Tensor = field(metadata=_tensor(torch.float32, "k"))
    """(k,) float32: weight of each target in influence; for the most probable tokens their probability. Targets that were
    named by hand weigh the same, whatever their probability."""
    logit_positions: torch.Tensor = field(metadata=_tensor(torch.int64, "k"))
    """(k,) int64: position at which each target is read."""
    logit_layers: torch.Tensor = field(metadata=_tensor(torch.int64, "k"))
    """(k,) int64: L for an output logit, l for a feature or residual vector of layer l."""
    n_layers: int
    """L."""
    edges: scipy.sparse.csr_array = field(metadata=_SPARSE)
    """(n, n) float32: only nonzero edges are stored; rows of errors and tokens are empty."""
    unattributed: torch.Tensor = field(metadata=_tensor(torch.float32, "n"))
    """(n,) float32: what excluded positions and decoder biases add to each row."""
    omitted: torch.Tensor = field(metadata=_tensor(torch.float32, "n"))
    """(n,) float32: signed sum of the edges from active features that were not selected."""
    omitted_magnitude: torch.Tensor = field(metadata=_tensor(torch.float32, "n"))
    """(n,) float32: sum of the absolute values of those edges; counts as error in the scores."""
    target_values: torch.Tensor = field(metadata=_tensor(torch.float32, "n"))
    """(n,) float32: left-hand side of completeness, from the forward pass; 0 for errors and tokens."""
    prompt: str
    """The prompt as text."""
    model_name: str
    """The model as it was named when the graph was traced."""
    transcoders_name: str
    """The transcoders as they were named when the graph was traced."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What reproduces the graph; must be JSON-able. `prune` adds its thresholds under `pruning`; `guesses` holds names for
    features without a label, by "L3/417" (see `crosstrace.tracer.with_guesses`), and `latents` the latents of SAEs that
    features write to (see `crosstrace.tracer.with_written_latents`)."""
    feature_labels: list[str] = field(default_factory=list, metadata=_strings("K"))
    """K strings: a label for each selected feature, "" where unknown."""
    node_mask: torch.Tensor | None = field(default=None, metadata=_tensor(torch.bool, "n"))
    """(n,) bool: nodes kept by pruning; None on a raw graph, as are the next two."""
    edge_mask_sparse: scipy.sparse.csr_array | None = field(default=None, metadata=_SPARSE)
    """(n, n) bool: edges kept by pruning."""
    influence: torch.Tensor | None = field(default=None, metadata=_tensor(torch.float64, "n"))
    """(n,) float64: cumulative share of influence at which each node enters (small = important)."""
    target_probabilities: torch.Tensor | None = field(default=None, metadata=_tensor(torch.float32, "k"))
    """(k,) float32: the model's probability of each target that is an output token, 0 for other targets. None where
    `logit_probabilities` are the probabilities, as in graphs of earlier versions."""

    attention: GraphAttention | None = field(default=None, metadata=_ATTENTION)
    """Which head carried each edge, and why the heads that matter most looked where they did; None unless they were
    computed (see `crosstrace.tracer.with_attention`)."""

    def __post_init__(self) -> None:
        self._names: dict[tuple[int, bool], tuple[list[str], list[str]]] = {}
        size = {letter: len(getattr(self, name)) for letter, name in _LENGTHS.items()} | {"n": self.layout.n}
        self.feature_labels = list(self.feature_labels) or [""] * size["K"]
        for part in _fields("tensor", "strings", "sparse"):
            value = getattr(self, part.name)
            if value is not None:
                shape = tuple(size.get(length, length) for length in part.metadata["shape"])
                setattr(self, part.name, _checked(part, value, shape))
        _check_range("selected_features", self.selected_features, size["N"])
        _check_range("logit_positions", self.logit_positions, size["P"])
        self._spans = spans_of(self.settings, size["P"])
        self._json_origin = json_origin_of(self.settings)
        if bool((self.logit_probabilities < 0).any()):
            raise ValueError("logit_probabilities holds a negative weight; influence needs weights of 0 or more")
        self.edges = canonical(self.edges)
        if not np.isfinite(self.edges.data).all():
            raise ValueError("edges holds NaN or infinity")
        if np.diff(self.edges.indptr)[size["K"] : self.layout.logits.start].any():
            raise ValueError("edges has an edge into an error or token node; those rows must be empty")
        if self.edge_mask_sparse is not None:
            self.edge_mask_sparse = mask_as_csr(self.edge_mask_sparse)

    @property
    def layout(self) -> NodeLayout:
        """The order of the nodes."""
        return NodeLayout(len(self.selected_features), self.n_layers, len(self.tokens), len(self.logit_tokens))

    @property
    def spans(self) -> Spans | None:
        """The turns, the answer and the template's tokens of a conversation, which `settings` hold; None for other prompts."""
        return self._spans

    @property
    def json_origin(self) -> JsonOrigin | None:
        """What is known of a graph that was read from JSON, which holds only what pruning kept; None for a whole graph.

        Of such a graph `unattributed`, `omitted`, `omitted_magnitude` and `target_values` are zero: they are not known.
        """
        return self._json_origin

    @property
    def n(self) -> int:
        """Number of nodes."""
        return self.layout.n

    @property
    def adjacency(self) -> torch.Tensor:
        """(n, n) float32, `adjacency[target, source]`: a dense copy of `edges`, for small graphs."""
        return torch.from_numpy(self.edges.toarray())

    @property
    def edge_mask(self) -> torch.Tensor | None:
        """(n, n) bool: a dense copy of `edge_mask_sparse`, for small graphs; None on a raw graph."""
        return None if self.edge_mask_sparse is None else torch.from_numpy(self.edge_mask_sparse.toarray())

    def kept_nodes(self) -> list[int]:
        """Return the nodes that pruning kept, ascending; all of them on a raw graph."""
        return list(range(self.n)) if self.node_mask is None else self.node_mask.nonzero().flatten().tolist()

    def kept_edges(self) -> scipy.sparse.csr_array:
        """Return the (n, n) float32 edges that pruning kept; all of them on a raw graph (then not a copy)."""
        if self.edge_mask_sparse is None:
            return self.edges
        return canonical(scipy.sparse.csr_array(self.edges.multiply(self.edge_mask_sparse)))

    def completeness_error(self) -> float:
        """Return the largest |left − right| over feature and target rows, relative to the row's sum of absolute terms.

        left = `target_values`; right = Σ edges + omitted + unattributed, in float64. Pruning does not change it. NaN for a
        graph that was read from JSON, where it is not known.

        Example:
            >>> graph.completeness_error()
            2.1e-07
        """
        if self.json_origin is not None:
            return math.nan
        terms = (self.omitted.double(), self.unattributed.double())
        right = row_sums(self.edges) + sum(term.numpy() for term in terms)
        scale = row_sums(self.edges, absolute=True)
        scale += self.omitted_magnitude.double().abs().numpy() + terms[1].abs().numpy()
        difference = np.abs(self.target_values.double().numpy() - right)
        # A row without any term must be zero on the left: any difference there is infinitely wrong.
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.where(difference > 0, difference / scale, 0.0)
        rows = np.r_[self.layout.features, self.layout.logits]
        return float(error[rows].max(initial=0.0))

    def feature_of(self, node: int) -> tuple[int, int, int]:
        """Return (layer, position, feature) of a feature node.

        Raises:
            IndexError: There is no such node.
            ValueError: The node is not a feature.
        """
        row = self.active_features[self.selected_features[self.layout.feature_of(node)]]
        layer, position, feature = row.tolist()
        return layer, position, feature

    def feature_key(self, node: int) -> tuple[int, int]:
        """Return (layer, feature) of a feature node: by these, feature cards and decoder directions are looked up.

        Raises:
            IndexError: There is no such node.
            ValueError: The node is not a feature.

        Example:
            >>> graph.feature_of(0), graph.feature_key(0)
            ((0, 3, 417), (0, 417))
        """
        layer, _, feature = self.feature_of(node)
        return layer, feature

    def name_of(self, node: int) -> str:
        """Return what to call a feature node: its label, or else the guess in `settings`; "" where there is neither.

        Raises:
            IndexError: There is no such node.
            ValueError: The node is not a feature.

        Example:
            >>> graph.name_of(0), graph.name_of(1)
            ('Texas', '→ Austin, Dallas')
        """
        label = self.feature_labels[self.layout.feature_of(node)]
        if label.strip():
            return label
        guesses = self.settings.get("guesses")
        if not isinstance(guesses, Mapping):
            return label
        layer, feature = self.feature_key(node)
        return str(guesses.get(f"L{layer}/{feature}") or label)

    def place_of(self, node: int) -> tuple[int, int]:
        """Return (layer, position) of any node: tokens have layer -1, output logits layer L.

        Raises:
            IndexError: There is no such node.
        """
        layout = self.layout
        match layout.kind(node):
            case "feature":
                return self.feature_of(node)[:2]
            case "error":
                return layout.error_of(node)
            case "token":
                return -1, layout.token_of(node)
            case _:
                i = layout.logit_of(node)
                return int(self.logit_layers[i]), int(self.logit_positions[i])

    def probability_of(self, target: int) -> float | None:
        """Return the model's probability of a target's token; None for a target that is not a single token.

        Args:
            target: Its place among the targets.
        """
        if int(self.logit_tokens[target]) < 0:
            return None
        known = self.logit_probabilities if self.target_probabilities is None else self.target_probabilities
        return float(known[target])

    def names(self, limit: int = 24, raw: bool = False) -> tuple[list[str], list[str]]:
        """Return what to show for the P tokens and the k targets, so that no two different ones are shown alike.

        With `raw`, that holds among the tokens and among the targets. Targets that are not a single token, such as
        contrasts, are shown as they are named, cut to `limit`. Unless `raw`, tokens of a chat template stand in marks,
        as in `‹user›`. For the arguments see `crosstrace.graphs.text.distinct`.

        Example:
            >>> graph.names()
            (['<bos>', 'Austin', 'is'], ['␣Austin'])
        """
        key = (limit, raw)
        if key not in self._names:
            is_token = [int(token) >= 0 for token in self.logit_tokens]
            found = [i for i, one in enumerate(is_token) if one]
            texts = [*self.token_strings, *(self.logit_strings[i] for i in found)]
            P = len(self.tokens)
            ids = [*self.tokens.tolist(), *(int(self.logit_tokens[i]) for i in found)]
            ids = _telling(texts[:P], ids[:P]) + _telling(texts[P:], ids[P:])
            if raw:  # what stands there says whether it is a token of the prompt or a target
                shown = distinct(texts[:P], ids[:P], raw=True) + distinct(texts[P:], ids[P:], raw=True)
            else:
                shown = distinct(texts, ids, limit)
            targets = [string if raw else short(string, limit) for string in self.logit_strings]
            for i, name in zip(found, shown[P:], strict=True):
                targets[i] = name
            template = frozenset() if raw or self.spans is None else self.spans.template
            tokens = [marked(name) if p in template else name for p, name in enumerate(shown[:P])]
            self._names[key] = tokens, targets
        return self._names[key]

    def token_name(self, position: int, limit: int = 24) -> str:
        """Return what to show for the token at a position; see `names`."""
        return self.names(limit)[0][position]

    def target_name(self, target: int, limit: int = 24) -> str:
        """Return what to show for a target, given its place among them; see `names`."""
        return self.names(limit)[1][target]

    def describe(self, node: int) -> str:
        """Describe a node in one line: 'Texas (L3/417 @ Dallas)', 'error L3 @ Dallas', 'token Dallas', 'logit Austin (p=0.85)'.

        Raises:
            IndexError: There is no such node.
        """
        layout = self.layout
        kind = layout.kind(node)
        if kind == "logit":
            i = layout.logit_of(node)
            if int(self.logit_tokens[i]) < 0:  # a contrast, a vector, a feature: its weight is not a probability
                return f"target {self.target_name(i, 60)}"
            what = "logit" if int(self.logit_layers[i]) == self.n_layers else "target"
            return f"{what} {self.target_name(i)} (p={probability(self.probability_of(i) or 0.0)})"
        layer, position = self.place_of(node)
        at = self.token_name(position)
        if kind == "token":
            return f"token {at}"
        if kind == "error":
            return f"error L{layer} @ {at}"
        name = f"L{layer}/{self.feature_of(node)[2]} @ {at}"
        label = self.name_of(node)
        return f"{short(label, 60)} ({name})" if label.strip() else name

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole graph, lossless, as `.safetensors`.

        Raises:
            OSError: The file cannot be written; nothing is left behind.
            ValueError: `settings` cannot be written as JSON.

        Example:
            >>> graph.save("raw.safetensors")
        """
        tensors: dict[str, torch.Tensor] = {}
        for part in _fields("tensor"):
            if (tensor := getattr(self, part.name)) is not None:
                tensors[part.name] = tensor
        for part in _fields("sparse"):
            if (matrix := getattr(self, part.name)) is not None:
                tensors |= csr_tensors(_stored_name(part), matrix)
        if self.attention is not None:
            tensors |= {f"{_ATTENTION_PREFIX}{name}": tensor for name, tensor in self.attention.tensors()}
        write_values(path, {part.name: getattr(self, part.name) for part in _fields("strings", "value")}, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AttributionGraph:
        """Read what `save` wrote.

        Raises:
            OSError: There is no such file, or it cannot be read.
            ValueError: The file is damaged, incomplete, not a crosstrace graph, or of a newer version; one line that
                names it and says which.

        Example:
            >>> graph = AttributionGraph.load("raw.safetensors")
        """
        dense, sparse = _fields("tensor"), _fields("sparse")
        required = [part.name for part in dense if _is_required(part)]
        required += [name for part in sparse if _is_required(part) for name in csr_names(_stored_name(part))]
        values, tensors = read_values(path, [part.name for part in _fields("strings", "value")], required)
        values |= {part.name: tensors[part.name] for part in dense if part.name in tensors}
        try:
            n = len(tensors["unattributed"])
            for part in sparse:
                if csr_names(_stored_name(part))[0] in tensors:
                    values[part.name] = csr_of(_stored_name(part), tensors, n)
            kept = {
                name.removeprefix(_ATTENTION_PREFIX): tensors[name]
                for name in tensors
                if name.startswith(_ATTENTION_PREFIX)
            }
            graph = cls(**values)
            if kept:
                layout = graph.layout
                graph.attention = GraphAttention.of_tensors(kept, layout.n, layout.n_layers, layout.n_positions)
            return graph
        except (ValueError, TypeError, KeyError) as problem:
            raise ValueError(f"{path}: {' '.join(str(problem).split())}") from None

    def __repr__(self) -> str:
        """One line: prompt, targets, and how much there is of everything."""
        targets = ", ".join(self.names()[1][:3]) + (", …" if len(self.logit_strings) > 3 else "")
        sizes = f"{count(len(self.active_features), 'active feature')}, {count(len(self.selected_features))} traced"
        if self.json_origin is not None:
            sizes = f"{count(len(self.selected_features), 'feature')}, read from JSON"
        parts = [
            f"{short(self.prompt, 60)!r} → {targets}",
            sizes,
            f"{count(self.n, 'node')}, {count(self.edges.nnz, 'edge')}",
        ]
        if self.node_mask is not None:
            parts.append(f"pruned to {count(int(self.node_mask.sum()), 'node')}")
        return f"<AttributionGraph {'; '.join(parts)}>"

    def _repr_html_(self) -> str:
        """The interactive page in a frame, for notebooks."""
        return as_html(self)


def _telling(texts: list[str], ids: list[int]) -> list[int]:
    """The ids of the tokens whose text several tokens of the list have, -1 for all others, which their text tells apart."""
    of_text: dict[str, set[int]] = {}
    for text, number in zip(texts, ids, strict=True):
        if number >= 0:
            of_text.setdefault(text, set()).add(number)
    return [number if len(of_text.get(text, ())) > 1 else -1 for text, number in zip(texts, ids, strict=True)]


def _fields(*kinds: str) -> list[dataclasses.Field[Any]]:
    """Fields of a graph by kind; what has none is a plain value."""
    return [part for part in dataclasses.fields(AttributionGraph) if part.metadata.get("kind", "value") in kinds]


def _is_required(part: dataclasses.Field[Any]) -> bool:
    return part.default is dataclasses.MISSING


def _stored_name(part: dataclasses.Field[Any]) -> str:
    return part.name.removesuffix("_sparse")


def _checked(part: dataclasses.Field[Any], value: Any, shape: tuple[int, ...]) -> Any:
    match part.metadata["kind"]:
        case "tensor":
            return _checked_tensor(part.name, value, part.metadata["dtype"], shape)
        case "strings" if len(value) != shape[0]:
            raise ValueError(f"{part.name} has {len(value)} entries, expected {shape[0]}")
        case "sparse" if tuple(value.shape) != shape:
            raise ValueError(f"{part.name} has shape {tuple(value.shape)}, expected {shape}")
    return value


def _checked_tensor(name: str, value: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    tensor = torch.as_tensor(value).detach().to(device="cpu", dtype=dtype)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    if dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds NaN or infinity")
    return tensor.contiguous()


def _check_range(name: str, values: torch.Tensor, stop: int) -> None:
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < stop:
        raise ValueError(f"{name} holds an index outside 0..{stop - 1}")
