"""The plan of a trace in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from crosstrace.replacement_model.memory import format_bytes
from crosstrace.tracer.attribution.plan import Phase, Plan
from crosstrace.tracer.terminal.tables import add_numbers, add_words, plain_table

_WHEN: dict[Phase, str] = {
    "throughout": "throughout",
    "trace": "during the trace",
    "pass": "before the rows, if needed",
    "rows": "while rows are computed",
    "graph": "after the trace",
}


def show_plan(plan: Plan, console: Console | None = None) -> None:
    """Print the plan of a trace: what it is about, memory by part, and the peak.

    Args:
        plan: What a trace will take.
        console: Where to print; None for standard output.
    """
    console = console or Console()
    console.print(_facts(plan))
    console.print(_parts(plan))


def _facts(plan: Plan) -> Table:
    size, used = plan.description, plan.transcoders
    kind = "cross-layer" if used.cross_layer else "per-layer"
    dtype = str(used.weights_dtype).removeprefix("torch.")
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        (
            "model",
            f"{size.n_layers} layers, d_model {size.d_model:,}, {size.n_heads} heads, {size.n_kv_heads} kv heads",
        ),
        ("transcoders", f"{kind}, {max(used.reader.n_features):,} features per layer, {dtype}"),
        ("prompt", f"{plan.n_positions:,} tokens, the first {size.excluded_first} excluded"),
        (
            "active features",
            f"about {plan.n_active:,}: {plan.active_per_layer:g} per layer and token ({plan.active_source})",
        ),
        ("rows", f"about {plan.n_rows:,} features and the targets, at most {plan.batch_size:,} at a time"),
        ("memory to plan with", f"{format_bytes(plan.budget)} on {used.device.type}"),
        ("to download first", format_bytes(plan.download_bytes) if plan.download_bytes else "nothing"),
    ):
        facts.add_row(name, value)
    return facts


def _parts(plan: Plan) -> Table:
    table = plain_table("")
    add_words(table, "part")
    add_numbers(table, "size")
    add_words(table, "where")
    add_words(table, "when")
    for part in plan.parts:
        table.add_row(part.name, format_bytes(part.n_bytes), part.place, _WHEN[part.phase])
    table.add_section()
    in_files = any(part.in_files for part in plan.parts)
    table.add_row("peak, without what stays in files" if in_files else "peak", format_bytes(plan.peak_bytes), "", "")
    return table
