"""The tables of a sweep: graphs, nodes and edges, as Parquet.

They hold what pruning kept. `graph` and `node` (its number in the graph) join them: an edge goes from `source` to `target`.

- `influence` of a node: the share of the influence on the targets that passes through it, 0 to 1, in the whole graph;
  the targets count by their weights.
- `share` of an edge: the share of that influence that passes along it.
- `entry`: the cumulative share at which pruning lets the node in, as in the JSON export's `influence`.
- `role`: the turn of a conversation (`user`, `assistant`), `template` for the chat template's tokens; null elsewhere.
- `heads` of an edge: the loading of every attention head that carries some of it; null where the graph keeps none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crosstrace.graphs import AttributionGraph, graph_scores, unpruned, with_card_labels
from crosstrace.graphs.aggregates.measured import edge_shares, node_shares
from crosstrace.graphs.files import write_atomically
from crosstrace.replacement_model.texts import pyarrow_for
from crosstrace.tracer.cards.lookup import cards_of
from crosstrace.tracer.sweeps.folder import TABLES, Shard, graph_path, part_path, table_path

_KINDS = {"feature": "feature", "error": "error", "token": "token", "logit": "target"}
# Rows of a Parquet row group, at least: many small ones are slow to read.
_GROUP_ROWS = 100_000


def check_tables() -> None:
    """Find out that tables cannot be written before minutes are spent.

    Raises:
        ValueError: pyarrow is not installed.
    """
    pyarrow_for("a sweep's tables: writing Parquet")


def graph_tables(graph: AttributionGraph, name: str, prompt: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of a graph in each table, as Arrow tables.

    Args:
        graph: Pruned and labelled.
        name: What the tables call it.
        prompt: What the manifest keeps of its prompt.
    """
    pyarrow = pyarrow_for("a sweep's tables: writing Parquet")
    schemas = _schemas(pyarrow)
    columns = {
        "graphs": _graph_columns(graph, prompt),
        "nodes": _node_columns(graph),
        "edges": _edge_columns(graph),
    }
    tables = {}
    for table, found in columns.items():
        found = {"graph": [name] * len(next(iter(found.values()))), **found}
        tables[table] = pyarrow.table([found[one] for one in schemas[table].names], schema=schemas[table])
    return tables


def write_parts(folder: Path, number: int, tables: Mapping[str, Any]) -> None:
    """Write a graph's rows beside it.

    Raises:
        OSError: They cannot be written.
    """
    pyarrow = pyarrow_for("a sweep's tables: writing Parquet")
    for table, rows in tables.items():
        write_atomically(part_path(folder, number, table), partial(pyarrow.parquet.write_table, rows))


def write_tables(folder: Path, shard: Shard, prompts: Sequence[Mapping[str, Any]], cards: Path | None = None) -> None:
    """Write a shard's tables in the order of the prompts; rows that are not beside a graph are made of it.

    Args:
        folder: The folder.
        shard: Which prompts.
        prompts: What the manifest keeps of those that are done.
        cards: Feature cards; None for those beside the transcoders.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: A graph is damaged.
    """
    pyarrow = pyarrow_for("a sweep's tables: writing Parquet")
    schemas = _schemas(pyarrow)
    metadata = _metadata_columns(pyarrow, prompts)
    for table in TABLES:
        schema = schemas[table]
        if table == "graphs":
            for field, _ in metadata:
                schema = schema.append(field)

        def write(file: Any, table: str = table, schema: Any = schema) -> None:
            with pyarrow.parquet.ParquetWriter(file, schema) as writer:
                waiting: list[Any] = []
                for rows in _rows(pyarrow, folder, table, prompts, cards):
                    waiting.append(rows)
                    if table != "graphs" and sum(map(len, waiting)) >= _GROUP_ROWS:
                        writer.write_table(pyarrow.concat_tables(waiting))
                        waiting = []
                if not waiting:
                    return
                whole = pyarrow.concat_tables(waiting)
                if table == "graphs":
                    for field, values in metadata:
                        whole = whole.append_column(field, [values])
                writer.write_table(whole)

        write_atomically(table_path(folder, table, shard), write)
    for prompt in prompts:
        for table in TABLES:
            part_path(folder, prompt["number"], table).unlink(missing_ok=True)


def _rows(
    pyarrow: Any, folder: Path, table: str, prompts: Sequence[Mapping[str, Any]], cards: Path | None
) -> Iterator[Any]:
    for prompt in prompts:
        part = part_path(folder, prompt["number"], table)
        if part.is_file():
            yield pyarrow.parquet.read_table(part)
        else:
            path = graph_path(folder, prompt["number"])
            graph = AttributionGraph.load(path)
            yield graph_tables(with_card_labels(graph, cards_of(graph, cards)), path.stem, prompt)[table]


def _schemas(pyarrow: Any) -> dict[str, Any]:
    text, whole, real = pyarrow.string(), pyarrow.int32(), pyarrow.float64()
    single, name = pyarrow.float32(), ("graph", pyarrow.string())
    head = pyarrow.struct([("layer", pyarrow.int16()), ("head", pyarrow.int16()), ("loading", single)])
    graphs = {
        "place": text,
        "prompt": text,
        "tokens": pyarrow.list_(text),
        "targets": pyarrow.list_(text),
        "probabilities": pyarrow.list_(single),
        "weights": pyarrow.list_(single),
        "replacement_score": real,
        "completeness_score": real,
        "active_features": whole,
        "traced_features": whole,
        "metadata": text,
    }
    nodes = {
        "node": whole,
        "kind": text,
        "layer": pyarrow.int16(),
        "feature": whole,
        "position": whole,
        "from_end": whole,
        "role": text,
        "token": text,
        "label": text,
        "activation": single,
        "influence": real,
        "entry": real,
        "weight": single,
    }
    edges = {
        "source": whole,
        "target": whole,
        "weight": single,
        "share": real,
        "heads": pyarrow.list_(head),
    }
    return {
        table: pyarrow.schema([name, *columns.items()])
        for table, columns in (("graphs", graphs), ("nodes", nodes), ("edges", edges))
    }


def _graph_columns(graph: AttributionGraph, prompt: Mapping[str, Any]) -> dict[str, list[Any]]:
    scores = graph_scores(unpruned(graph))
    names, targets = graph.names()
    return {
        "place": [prompt["place"]],
        "prompt": [graph.prompt],
        "tokens": [names],
        "targets": [targets],
        "probabilities": [[graph.probability_of(i) for i in range(len(targets))]],
        "weights": [graph.logit_probabilities.tolist()],
        "replacement_score": [scores.replacement],
        "completeness_score": [scores.completeness],
        "active_features": [len(graph.active_features)],
        "traced_features": [len(graph.selected_features)],
        "metadata": [json.dumps(prompt["metadata"], sort_keys=True)],
    }


def _node_columns(graph: AttributionGraph) -> dict[str, Any]:
    layout, P = graph.layout, len(graph.tokens)
    kept = graph.kept_nodes()
    kinds = [layout.kind(node) for node in kept]
    places = [graph.place_of(node) for node in kept]
    features = [
        graph.feature_of(node)[2] if kind == "feature" else None for node, kind in zip(kept, kinds, strict=True)
    ]
    is_target = [kind == "logit" for kind in kinds]
    names, targets = graph.names()
    roles = token_roles(graph)
    shares = node_shares(graph)[kept]
    entry = np.ones(graph.n) if graph.influence is None else graph.influence.numpy()
    return {
        "node": kept,
        "kind": [_KINDS[kind] for kind in kinds],
        "layer": [layer for layer, _ in places],
        "feature": features,
        "position": [position for _, position in places],
        "from_end": [position - P for _, position in places],
        "role": [roles[position] for _, position in places],
        "token": [
            targets[layout.logit_of(node)] if target else names[position]
            for node, target, (_, position) in zip(kept, is_target, places, strict=True)
        ],
        "label": [graph.name_of(node) if kind == "feature" else None for node, kind in zip(kept, kinds, strict=True)],
        "activation": [
            float(graph.activations[graph.selected_features[layout.feature_of(node)]]) if kind == "feature" else None
            for node, kind in zip(kept, kinds, strict=True)
        ],
        "influence": shares,
        "entry": entry[kept],
        "weight": [
            float(graph.logit_probabilities[layout.logit_of(node)]) if target else None
            for node, target in zip(kept, is_target, strict=True)
        ],
    }


def token_roles(graph: AttributionGraph) -> list[str | None]:
    """Return whose turn of a conversation each token is in, `template` for the template's; None where it is no conversation."""
    roles: list[str | None] = [None] * len(graph.tokens)
    if (spans := graph.spans) is not None:
        for role, start, stop in spans.turns:
            roles[start:stop] = [role] * (stop - start)
        for position in spans.template:
            roles[position] = "template"
    return roles


def _edge_columns(graph: AttributionGraph) -> dict[str, Any]:
    edges = graph.kept_edges().tocoo()
    shares = edge_shares(graph).tocsr()
    found = np.asarray(shares[edges.row, edges.col]).ravel()
    return {
        "source": edges.col.astype(np.int32),
        "target": edges.row.astype(np.int32),
        "weight": edges.data.astype(np.float32),
        "share": found,
        "heads": _heads(graph, edges.row.tolist(), edges.col.tolist()),
    }


def _heads(graph: AttributionGraph, targets: Sequence[int], sources: Sequence[int]) -> list[Any]:
    if graph.attention is None:
        return [None] * len(targets)
    loadings = graph.attention.loadings
    rows: list[Any] = []
    for target, source in zip(targets, sources, strict=True):
        place = loadings.of(target, source)
        if place is None:
            rows.append(None)
            continue
        heads_lh = loadings.heads[place]
        rows.append(
            [
                {"layer": layer, "head": head, "loading": float(heads_lh[layer, head])}
                for layer, head in heads_lh.nonzero().tolist()
            ]
        )
    return rows


def _metadata_columns(pyarrow: Any, prompts: Sequence[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
    """A column for every key of the metadata: numbers or truth values where all are, else text."""
    columns = []
    for key in sorted({key for prompt in prompts for key in prompt["metadata"]}):
        values = [prompt["metadata"].get(key) for prompt in prompts]
        kinds = {type(value) for value in values if value is not None}
        if kinds == {bool}:
            kind = pyarrow.bool_()
        elif kinds <= {int, float} and kinds:
            kind = pyarrow.int64() if kinds == {int} else pyarrow.float64()
            if kinds == {int} and any(abs(value) >= 2**63 for value in values if value is not None):
                kind = pyarrow.float64()
        else:
            kind = pyarrow.string()
            values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        columns.append((pyarrow.field(f"meta_{key}", kind), pyarrow.array(values, kind)))
    return columns
