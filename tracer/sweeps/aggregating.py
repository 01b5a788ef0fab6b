"""What holds across the graphs of a sweep's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from crosstrace.graphs import AttributionGraph, prune, with_card_labels, write_html
from crosstrace.graphs.aggregates.circuit import (
    RESAMPLES,
    SPLITS,
    Aggregate,
)
from crosstrace.graphs.aggregates.collector import Collector
from crosstrace.graphs.aggregates.defaults import MIN_INFLUENCE, MIN_SHARE
from crosstrace.graphs.aggregates.observed import observe
from crosstrace.graphs.aggregates.roles import Alignment, Pattern, place
from crosstrace.graphs.aggregates.values import varying
from crosstrace.tracer.cards.lookup import cards_of
from crosstrace.tracer.sweeps.folder import sweep_graphs

Note = Callable[[str], None]


def aggregate(
    folder: str | Path,
    patterns: Sequence[str] = (),
    alignment: Alignment | None = None,
    named_by: Sequence[str] | None = None,
    *,
    not_named_by: Sequence[str] = (),
    cards: Path | None = None,
    min_share: float = MIN_SHARE,
    min_influence: float = MIN_INFLUENCE,
    resamples: int = RESAMPLES,
    splits: int = SPLITS,
    seed: int = 0,
    note: Note | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Aggregate:
    """Return what holds across the graphs of a sweep: nodes aligned by role, the aggregate circuit, its stability.

    Args:
        folder: Of a sweep; all of its shards count.
        patterns: Texts with slots, such as `"The capital of the state containing {city} is"`, by which positions are
            aligned; graphs of none are left out.
        alignment: Without patterns: `end`, `token` or `span`; None: `span` for conversations, `end` for other prompts.
        named_by: Keys of the metadata whose values may stand in the names of features and targets; slots do so in any
            case. None: all keys of texts that are not the same for every prompt.
        not_named_by: Keys that are not to do so.
        cards: Feature cards that label features; None for those beside the transcoders.
        min_share: Share of the prompts that a node of the circuit is in.
        min_influence: Its mean influence.
        resamples: Of the bootstrap.
        splits: Random halves of the prompts.
        seed: Of both.
        note: Called with one line about what is left out.
        progress: Called with what is done, how much of it, and how much there is.

    Raises:
        OSError: The folder is not one of a sweep, or a file cannot be read.
        ValueError: A pattern cannot be read, no graph is of any, or a graph is damaged.

    Example:
        >>> found = aggregate("cities", ["The capital of the state containing {city} is"])
        >>> [found.nodes[i].shown for i in found.circuit(min_share=0.5)[0]]
        ['{city}', 'its state', 'say its capital (its state)', 'its capital']
    """
    read = [Pattern(text) for text in patterns]
    graphs = list(sweep_graphs(Path(folder)))
    if not graphs:
        raise ValueError(f"{folder}: has no graphs yet")
    rows = [row["metadata"] for _, _, row in graphs]
    keys = [key for key in (varying(rows) if named_by is None else named_by) if key not in not_named_by]
    if missing := [key for key in keys if not any(key in row for row in rows)]:
        known = ", ".join(sorted({key for row in rows for key in row})) or "none"
        raise ValueError(f"no prompt has the key {missing[0]!r} in its metadata (keys: {known})")
    collector, found = Collector(), None
    for number, (name, path, row) in enumerate(graphs):
        if progress is not None:
            progress("reading graphs", number, len(graphs))
        graph = AttributionGraph.load(path)
        graph = graph if graph.node_mask is not None else prune(graph)
        if number == 0:
            found = cards_of(graph, cards, note)
            collector = Collector(graph.model_name, graph.transcoders_name)
        placed = place(graph, alignment or ("end" if graph.spans is None else "span"), read)
        if placed is None:
            collector.leave_out(name)
            continue
        collector.add(observe(with_card_labels(graph, found), name, placed, row["metadata"], keys))
    if progress is not None:
        progress("reading graphs", len(graphs), len(graphs))
    about = {"patterns": list(patterns), "alignment": alignment, "named_by": keys}
    result = collector.result(min_share, min_influence, resamples, splits, seed, about)
    if result.left_out and note is not None:
        note(f"{len(result.left_out):,} of {len(graphs):,} graphs are of no pattern and left out")
    return result


def write_prompt_pages(
    folder: str | Path,
    found: Aggregate,
    pages: Path,
    cards: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Path]:
    """Write the page of each prompt's graph.

    Args:
        folder: Of the sweep.
        found: What holds across its graphs.
        pages: Where the pages go; made if it does not exist.
        cards: Feature cards; None for those beside the transcoders.
        progress: Called with what is done, how much of it, and how much there is.

    Returns:
        The pages by the names of the graphs.

    Raises:
        OSError: A graph cannot be read, or a page cannot be written.
        ValueError: A graph is damaged, or too large for a page.
    """
    pages.mkdir(parents=True, exist_ok=True)
    written = {}
    for number, prompt in enumerate(found.prompts):
        if progress is not None:
            progress("writing pages", number, len(found.prompts))
        graph = AttributionGraph.load(Path(folder) / "graphs" / f"{prompt['graph']}.safetensors")
        known = cards_of(graph, cards)
        written[prompt["graph"]] = (pages / f"{prompt['graph']}.html").resolve()
        write_html(with_card_labels(graph, known), written[prompt["graph"]], known)
    if progress is not None:
        progress("writing pages", len(found.prompts), len(found.prompts))
    return written
