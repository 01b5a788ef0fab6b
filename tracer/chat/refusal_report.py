"""A refusal report as JSON and as a page."""

from __future__ import annotations

import json
from pathlib import Path

from crosstrace.graphs import write_atomically
from crosstrace.tracer.chat.page import Curve, PlotsPart, TablePart, page_of
from crosstrace.tracer.chat.refusal import RefusalReport

SUFFIXES = (".json", ".html", ".htm")


def write_refusal(report: RefusalReport, path: Path) -> None:
    """Write a report, whole or not at all.

    Args:
        report: The report.
        path: `.json`, or `.html` for a page.

    Raises:
        OSError: It cannot be written.
        ValueError: The suffix is another one.
    """
    match path.suffix.lower():
        case ".json":
            content = json.dumps(report.to_dict(), indent=1, ensure_ascii=True, allow_nan=False)
            write_atomically(path, content.encode())
        case ".html" | ".htm":
            write_atomically(path, refusal_page(report))
        case suffix:
            raise ValueError(f"{path}: a report is written as .json or .html, not {suffix or 'without a suffix'}")


def refusal_page(report: RefusalReport) -> bytes:
    """Return the page of a report."""
    plots = {}
    for mode, curves, what in (
        ("removed from refused conversations", report.removed, "complied"),
        ("added to complied conversations", report.added, "refused"),
    ):
        share = {"complied": "share complied with", "refused": "share refused"}[what]
        plots[f"{mode}: {share}"] = [
            Curve(by, [p.count for p in points], [getattr(p, what) for p in points]) for by, points in curves.items()
        ]
        plots[f"{mode}: margin in nats"] = [
            Curve(by, [p.count for p in points], [p.margin for p in points]) for by, points in curves.items()
        ]
    features = [(f.feature, f.label, f.score, f.refused, f.complied) for f in report.features]
    parts: list[TablePart | PlotsPart] = [
        PlotsPart(
            "Held-out conversations", plots, about="Bars are 95 % bootstrap intervals over conversations.", x="features"
        ),
        TablePart(
            "Features that carry the refusal",
            ("feature", "label", "predicted, nats", "in refused", "in complied"),
            features,
            "What the graphs predict that the feature adds to the margin, and its mean activations where the template closes "
            "the prompt.",
        ),
    ]
    for title, rows in (("Nearest to the margin's zero", report.boundary), ("Answered otherwise", report.unexpected)):
        if rows:
            cells = [(row["text"], row["answer"], row["kind"], float(row["margin"])) for row in rows]
            parts.append(TablePart(title, ("request", "answer", "which is", "margin"), cells))
    footer = f"{report.model} with {report.transcoders}; {json.dumps(dict(report.counts))}"
    return page_of("Refusal", report.first_line, parts, footer)
