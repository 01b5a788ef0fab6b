"""The plan of a trace in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from crosstrace.replacement_model.memory import format_bytes
from crosstrace.tracer.attribution.plan import Plan


def show_plan(plan: Plan, console: Console) -> None:
    """Print the plan as a table."""

    size, used = plan.description, plan.transcoders
    kind = "cross-layer" if used.cross_layer else "per-layer"
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        (
            "model",
            f"{size.n_layers} layers, d_model {size.d_model:,}, {size.n_heads} heads, {size.n_kv_heads} kv heads",
        ),
        ("transcoders", f"{kind}, {max(used.reader.n_features):,} features a layer, {str(used.weights_dtype)[6:]}"),
        ("prompt", f"{plan.n_positions:,} tokens, {size.excluded_first} of them excluded"),
        (
            "active features",
            f"about {plan.n_active:,}: {plan.active_per_layer:g} a layer and token ({plan.active_source})",
        ),
        ("rows", f"about {plan.n_rows:,} features and the targets, {plan.batch_size:,} at a time"),
        ("memory to plan with", f"{format_bytes(plan.budget)} on {used.device.type}"),
        ("to download first", format_bytes(plan.download_bytes) if plan.download_bytes else "nothing"),
    ):
        facts.add_row(name, value)
    table = Table("part", "size", "where it will be")
    table.columns[1].justify = "right"
    for part in plan.parts:
        table.add_row(part.name, format_bytes(part.n_bytes), part.place)
    table.add_section()
    table.add_row("together, without what stays in files", format_bytes(plan.device_bytes), "")
    console.print(facts)
    console.print(table)
