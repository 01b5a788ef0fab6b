"""Whether a graph is of the weights at hand: what everything that takes a graph and a model asks first."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from crosstrace.graphs import AttributionGraph
from crosstrace.graphs.fingerprints import is_newest, same_weights
from crosstrace.replacement_model import ReplacementModel, weight_fingerprints

Note = Callable[[str], None]
_OPTIONS = {"model": "--model", "transcoders": "--transcoders"}


def check_graph_weights(model: ReplacementModel, graph: AttributionGraph, note: Note | None = None) -> None:
    """Refuse a graph that was traced with other weights than a model's.

    Args:
        model: The model and transcoders at hand.
        graph: The graph.
        note: Called with one line if the graph is from before it could be told.

    Raises:
        ValueError: The weights of the model or of the transcoders are others, or are the same in another dtype; one
            line names them.
    """
    if graph.n_layers != model.description.n_layers:
        raise ValueError(
            f"the graph was traced in {graph.model_name}, which has {graph.n_layers} layers; "
            f"{model.name} has {model.description.n_layers}"
        )
    traced, used = graph.settings.get("weights_dtype"), model.weights_dtype
    if traced is not None and traced != used:
        raise ValueError(f"the graph was traced with {traced} weights, but these are {used}: give --dtype {traced}")
    check_weights(
        model, graph.settings.get("fingerprints"), "the graph", (graph.model_name, graph.transcoders_name), note
    )


def check_weights(
    model: ReplacementModel,
    fingerprints: Mapping[str, str] | None,
    what: str,
    names: tuple[str, str],
    note: Note | None = None,
    exact: bool = True,
) -> None:
    """Refuse what was made with other weights than a model's.

    Args:
        model: The model and transcoders at hand.
        fingerprints: Those of the weights it was made with, as `crosstrace.replacement_model.weight_fingerprints`
            returns them; None if unknown.
        what: What was made, for messages, such as `the graph`.
        names: What it names as its model and transcoders.
        note: Called with one line if fingerprints are missing or are from before they saw every kind of weight.
        exact: Whether the dtype that weights are used in matters too, as it does for edges.

    Raises:
        ValueError: The weights of the model or of the transcoders are others, or are the same in another dtype; one
            line names them.
    """
    here = weight_fingerprints(model)
    for part, theirs, ours in zip(
        ("transcoders", "model"), reversed(names), (model.transcoders.name, model.name), strict=True
    ):
        if same_weights(part, fingerprints, here) is False:
            raise ValueError(
                f"{what} was traced with other {'weights' if part == 'model' else 'transcoders'}: "
                f"those of {theirs}{', not of ' + ours if ours != theirs else ', which have changed since'}; "
                f"give its own {_OPTIONS[part]}"
            )
    used = (fingerprints or {}).get("exact")
    if exact and used and used != here["exact"]:
        then, now = (digits.rpartition(":")[0] for digits in (used, here["exact"]))
        difference = f"{then}, now {now}" if then != now else "other digits, perhaps rounded"
        raise ValueError(f"{what} was traced with its weights in another dtype ({difference}): give its own --dtype")
    if note is not None and not (
        is_newest("transcoders", fingerprints) and (used == here["exact"] or is_newest("model", fingerprints))
    ):
        note(
            f"{what} is from before fingerprints saw all weights: "
            "that it belongs to these is told by its names and features alone"
        )
