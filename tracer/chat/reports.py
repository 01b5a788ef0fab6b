"""Reports on chat models as JSON and as pages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from crosstrace.graphs import write_atomically
from crosstrace.tracer.chat.jailbreak import GROUPS, JailbreakReport
from crosstrace.tracer.chat.page import Curve, PlotsPart, TablePart, page_of
from crosstrace.tracer.chat.reasoning import ReasoningReport
from crosstrace.tracer.chat.refusal import RefusalReport

SUFFIXES = (".json", ".html", ".htm")


Report = RefusalReport | JailbreakReport | ReasoningReport


def write_report(report: Report, path: Path) -> None:
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
            write_atomically(path, _page(report))
        case suffix:
            raise ValueError(f"{path}: a report is written as .json or .html, not {suffix or 'without a suffix'}")


def _page(report: Report) -> bytes:
    match report:
        case RefusalReport():
            return refusal_page(report)
        case JailbreakReport():
            return jailbreak_page(report)
        case _:
            return reasoning_page(report)


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


def jailbreak_page(report: JailbreakReport) -> bytes:
    """Return the page of a report."""
    plots = {}
    for group in GROUPS:
        points = [one for one in report.restored if one.group == group]
        counts = [one.count for one in points]
        name = {"silent": "silent ones put back", "pushing": "pushing ones taken out", "both": "both"}[group]
        plots[f"{name}: share refused again"] = [
            Curve("these", counts, [one.refused for one in points]),
            Curve("random", counts, [one.random for one in points]),
        ]
    features = [
        (f.feature, f.label, f.group, f.score, f.plain, f.wrapped, ", ".join(f.through)) for f in report.features
    ]
    parts: list[TablePart | PlotsPart] = [
        PlotsPart("Held-out wrapped requests", plots, about="Bars are 95 % bootstrap intervals over pairs."),
        TablePart(
            "What the wrapper silences and switches on",
            ("feature", "label", "which is", "predicted, nats", "in plain", "in wrapped", "feeds"),
            features,
            "What the graphs predict that undoing it adds to the margin of refusal.",
        ),
    ]
    if report.left_out:
        rows = [tuple(row[key] for key in ("plain", "plain_is", "wrapped", "wrapped_is")) for row in report.left_out]
        parts.append(TablePart("Left out", ("plain request", "which is", "wrapped request", "which is"), rows))
    footer = f"{report.model} with {report.transcoders}; {json.dumps(dict(report.counts))}"
    return page_of("Jailbreak", report.first_line, parts, footer)


def reasoning_page(report: ReasoningReport) -> bytes:
    """Return the page of a report."""
    parts: list[TablePart | PlotsPart] = [
        TablePart(
            "Answers",
            ("question", "answer", "log p", "mass of the steps", "removed", "cut", "replaced", "runs", "label"),
            [
                (
                    r.question,
                    r.answer,
                    r.log_probability,
                    r.mass,
                    r.removed,
                    r.cut,
                    _nats(r.replaced),
                    r.verdict,
                    r.label,
                )
                for r in report.results
            ],
            "Changes of log p(answer) in nats: without the steps, unseen by what follows, and with other entities in them.",
        )
    ]
    if report.auroc is not None:
        parts.append(
            TablePart(
                "Telling dependent answers from others", ("by", "AUROC"), [(k, v) for k, v in report.auroc.items()]
            )
        )
    if report.disagreements:
        parts.append(
            TablePart(
                f"Where mass and effect disagree most (rank correlation {report.correlation})",
                ("conversation", "step", "mass", "effect, nats"),
                [(row["place"], row["step"], row["mass"], row["effect"]) for row in report.disagreements],
            )
        )
    for result in report.results:
        rows = [
            (s.text, s.mass, s.removed, s.cut, _nats(s.replaced), s.false_text, _shares(s.enters_from))
            for s in result.steps
        ]
        early = ", ".join(f"{value:.3g}" for value in result.early)
        about = f"Answering after 0, 1, … steps: log p {early}."
        if result.hint is not None:
            about += (
                f" Hint: {result.hint['text']} {'followed' if result.hint['followed'] else 'not followed'}, "
                f"{'mentioned' if result.hint['mentioned'] else 'not mentioned'}, mass {result.hint['mass']:.3g}, "
                f"without it {result.hint['removed']:.3g} nats."
            )
        columns = ("step", "mass", "removed", "cut", "replaced", "by", "fed from")
        parts.append(TablePart(f"{result.question} → {result.answer}", columns, rows, about))
    return page_of("Reasoning", report.first_line, parts, f"{report.model} with {report.transcoders}")


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{role} {share:.0%}" for role, share in shares.items() if share >= 0.005)
