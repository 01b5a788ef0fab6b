"""A reading in the terminal: tokens across, latents down, activations as shades.

Where the tokens' texts fit side by side they stand above their columns. Otherwise a token is one cell, and of a prompt
with more tokens than cells several share one, shaded by the largest; the token at each latent's peak is named beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crosstrace.graphs.numbers import count, plain
from crosstrace.graphs.text import short, visible
from crosstrace.tracer.defaults import READ_ROWS
from crosstrace.tracer.reading.read import Key, Reading
from crosstrace.tracer.terminal.tables import add_row, at, explain_guesses, fitted, is_narrow, plain_table

_SHADES = "░▒▓█"
_TOKEN_CELLS, _LABEL_CELLS, _PEAK_CELLS = 9, 18, 12


def show_reading(reading: Reading, console: Console | None = None, rows: int = READ_ROWS) -> None:
    """Print a reading: for every layer its strongest latents, each with its activation along the prompt.

    Args:
        reading: The reading.
        console: Where to print; None for standard output.
        rows: About how many latents to show.
    """
    console = console or Console()
    keys = reading.strongest(rows)
    for number, dictionary in enumerate(reading.dictionaries):
        layers = ", ".join(f"L{layer.layer} {plain(layer.measured)}" for layer in dictionary.layers[:8])
        more = f" and {len(dictionary.layers) - 8} more" if len(dictionary.layers) > 8 else ""
        about = f"reads {dictionary.site}; active at a token: {layers}{more}"
        console.print(Text.assemble((visible(dictionary.name), "bold"), f" {about}"), soft_wrap=False)
        shown = [key for key in keys if key[0] == number]
        if shown:
            table = _table(reading, shown, console)
            explain_guesses(table, (latent.label for latent in reading.latents if latent.key in set(shown)))
            console.print(table)
        else:
            console.print(Text("no latent is active", style="dim"))
    kept = count(len(reading.activations), "latent")
    console.print(Text(f"{len(keys)} of {kept} shown, by their largest activation.", style="dim"))


def _table(reading: Reading, keys: Sequence[Key], console: Console) -> Table:
    labels = {latent.key: latent.label for latent in reading.latents}
    names = {key: reading.name(key) for key in keys}
    narrow = is_narrow(console)
    name_cells = max(map(cell_len, names.values()))
    label_cells = 0 if narrow or not any(labels[key] for key in keys) else _LABEL_CELLS
    positions = range(reading.excluded_first, len(reading.tokens))
    texts = [fitted(short(name, 16), _TOKEN_CELLS) for name in reading.names[positions.start :]]
    widths = [max(5, cell_len(text)) for text in texts]
    left = console.width - name_cells - (label_cells + 2 if label_cells else 0) - 2
    if sum(width + 1 for width in widths) <= left:
        return _spread_out(reading, keys, names, labels, label_cells, positions, texts, widths)
    return _strips(reading, keys, names, labels, label_cells, positions, left - _PEAK_CELLS - 11)


def _spread_out(
    reading: Reading,
    keys: Sequence[Key],
    names: Mapping[Key, str],
    labels: Mapping[Key, str],
    label_cells: int,
    positions: range,
    texts: Sequence[str],
    widths: Sequence[int],
) -> Table:
    table = plain_table("")
    table.add_column("latent", no_wrap=True, style="dim")
    if label_cells:
        table.add_column("label", no_wrap=True)
    table.add_column(Text(" ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True))), no_wrap=True)
    for key in keys:
        values = dict(reading.activations[key])
        most = max(values.values())
        cells = Text()
        for position, width in zip(positions, widths, strict=True):
            value = values.get(position, 0.0)
            shown = f"{_shade(value, most)}{plain(value)}"[:width] if value else ""
            cells.append(shown.ljust(width), style=_style(value, most))
            cells.append(" ")
        add_row(table, names[key], *([fitted(labels[key], label_cells)] if label_cells else []), cells)
    return table


def _strips(
    reading: Reading,
    keys: Sequence[Key],
    names: Mapping[Key, str],
    labels: Mapping[Key, str],
    label_cells: int,
    positions: range,
    room: int,
) -> Table:
    together = -(-len(positions) // max(8, room))  # tokens of a cell
    table = plain_table("")
    table.add_column("latent", no_wrap=True, style="dim")
    if label_cells:
        table.add_column("label", no_wrap=True)
    unit = f"{together} tokens a cell" if together > 1 else "a token a cell"
    table.add_column(Text(f"{positions[0]}–{positions[-1]}, {unit}"), no_wrap=True)
    table.add_column(Text("largest"), justify="right", no_wrap=True)
    table.add_column(Text("at"), no_wrap=True)
    for key in keys:
        values = dict(reading.activations[key])
        most = max(values.values())
        peak = max(values, key=lambda position: values[position])
        cells = Text()
        for start in range(positions.start, positions.stop, together):
            value = max(values.get(p, 0.0) for p in range(start, min(start + together, positions.stop)))
            cells.append(_shade(value, most) if value else "·", style=_style(value, most) if value else "dim")
        place = at(reading.names[peak], peak, _PEAK_CELLS - len(str(peak)) - 3)
        label = [fitted(labels[key], label_cells)] if label_cells else []
        add_row(table, names[key], *label, cells, plain(most), place)
    return table


def _shade(value: float, most: float) -> str:
    return _SHADES[min(len(_SHADES) - 1, int(len(_SHADES) * value / most))]


def _style(value: float, most: float) -> str:
    return "bold" if value == most else ""
