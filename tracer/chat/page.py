"""Reports as pages: one `.html` file that opens offline, with tables and curves; text only ever becomes text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from crosstrace.tracer.chat.statistics import Mean

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 460, 240, 48, 12, 12, 40
_COLOURS = ("#0072B2", "#E69F00", "#8A97A3", "#009E73", "#D55E00")
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1a1d21}"
    "h1{font-size:1.15rem}h2{font-size:1rem;margin-top:2rem}p.first{font-size:1.1rem;font-weight:600}"
    "table{border-collapse:collapse}th,td{padding:.15rem .7rem .15rem 0;text-align:left;vertical-align:top}"
    "th{border-bottom:1px solid #bbb}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}"
    ".plots{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0}figcaption{font-size:.85rem;color:#555}"
    "svg text{font:11px system-ui,sans-serif;fill:#555}.said{color:#555}"
)


@dataclass(frozen=True)
class TablePart:
    """A table: its heading, the names of its columns, and its rows. Numbers stand at the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | int]]
    about: str = ""


@dataclass(frozen=True)
class Curve:
    """Means against a count.

    Attributes:
        name: Of the curve.
        counts: Where its points are.
        means: The points, with intervals.
    """

    name: str
    counts: Sequence[int]
    means: Sequence[Mean]


@dataclass(frozen=True)
class PlotsPart:
    """Plots side by side, by their titles; each has its curves."""

    title: str
    plots: Mapping[str, Sequence[Curve]]
    x: str = "features"
    about: str = ""


def page_of(title: str, first_line: str, parts: Sequence[TablePart | PlotsPart], footer: str = "") -> bytes:
    """Return a page.

    Args:
        title: Of the page.
        first_line: What is found, in one sentence.
        parts: Tables and plots, in order.
        footer: What was looked at, in small print.
    """
    body = "".join(_table(part) if isinstance(part, TablePart) else _plots(part) for part in parts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f'<p class="first">{escape(first_line)}.</p>{body}<p class="said">{escape(footer)}</p></body></html>\n'
    ).encode("utf-8", "xmlcharrefreplace")


def _heading(part: TablePart | PlotsPart) -> str:
    about = f'<p class="said">{escape(part.about)}</p>' if part.about else ""
    return f"<h2>{escape(part.title)}</h2>{about}"


def _table(part: TablePart) -> str:
    numeric = [
        bool(part.rows) and all(isinstance(row[i], int | float) for row in part.rows) for i in range(len(part.columns))
    ]

    def cell(tag: str, value: str | float | int, number: bool) -> str:
        shown = f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        return f"<{tag}{' class=n' if number else ''}>{escape(shown)}</{tag}>"

    head = "".join(cell("th", name, number) for name, number in zip(part.columns, numeric, strict=True))
    rows = "".join(
        "<tr>" + "".join(cell("td", value, number) for value, number in zip(row, numeric, strict=True)) + "</tr>"
        for row in part.rows
    )
    return f"{_heading(part)}<table><tr>{head}</tr>{rows}</table>"


def _plots(part: PlotsPart) -> str:
    plots = "".join(
        f"<figure>{_plot(curves, part.x)}<figcaption>{escape(name)}</figcaption></figure>"
        for name, curves in part.plots.items()
    )
    return f'{_heading(part)}<div class="plots">{plots}</div>'


def _plot(curves: Sequence[Curve], x: str) -> str:
    counts = sorted({count for curve in curves for count in curve.counts})
    values = [end for curve in curves for mean in curve.means for end in (mean.low, mean.high, mean.value)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high if high > low else low + 1)
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def across(count: int) -> float:
        return _LEFT + wide * (counts.index(count) + 0.5) / len(counts)

    def up(value: float) -> float:
        return _TOP + tall * (high - value) / (high - low)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img">']
    for value in (low, (low + high) / 2, high):
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up(value):.1f}" y2="{up(value):.1f}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    parts += [f'<text x="{across(c):.1f}" y="{_HEIGHT - 24}" text-anchor="middle">{c}</text>' for c in counts]
    for number, curve in enumerate(curves):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [(across(count), mean) for count, mean in zip(curve.counts, curve.means, strict=True)]
        line = " ".join(f"{at:.1f},{up(mean.value):.1f}" for at, mean in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for at, mean in points:
            parts.append(
                f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{up(mean.low):.1f}" y2="{up(mean.high):.1f}" stroke="{colour}"/>'
                f'<circle cx="{at:.1f}" cy="{up(mean.value):.1f}" r="3" fill="{colour}"/>'
            )
        left = _LEFT + number * wide / max(len(curves), 1)
        parts.append(f'<rect x="{left:.1f}" y="{_HEIGHT - 14}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{left + 14:.1f}" y="{_HEIGHT - 5}">{escape(curve.name)}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 5}" text-anchor="end">{escape(x)}</text></svg>')
    return "".join(parts)
