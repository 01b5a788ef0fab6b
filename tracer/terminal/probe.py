"""Probes in the terminal: what one is worth, the latents that it reads, its score at each token, and disagreements."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crosstrace.graphs.numbers import count, plain, share, signed
from crosstrace.graphs.text import short, visible
from crosstrace.tracer.probes.disagreements import Disagreements
from crosstrace.tracer.probes.fit import Auroc
from crosstrace.tracer.probes.probe import Probe, Scores
from crosstrace.tracer.terminal.tables import (
    add_numbers,
    add_row,
    add_words,
    at,
    coloured,
    fitted,
    is_narrow,
    plain_table,
)

_LATENTS, _LABEL_CELLS, _ROWS = 12, 28, 20


def show_probe(probe: Probe, console: Console | None = None) -> None:
    """Print what a probe is worth, the verdict first, and the latents that it reads.

    Args:
        probe: The probe.
        console: Where to print; None for standard output.
    """
    console = console or Console()
    report = probe.report
    console.print(Text(report.verdict(), style="bold"))
    console.print(
        f"{report.texts[0]:,} texts with and {report.texts[1]:,} without, in {count(report.groups, 'group')}; tested on "
        f"{report.held_out[0]:,} and {report.held_out[1]:,} of other groups",
        highlight=False,
    )
    table = plain_table("")
    add_words(table, "read-out", style="bold")
    add_numbers(table, "AUROC\nheld out", "95 %\ninterval")
    rows: list[tuple[str, Auroc]] = [
        (f"latents ({count(len(probe.latents), 'of them', 'of them')})", report.latents),
        ("raw activations", report.raw),
        (f"best single latent: {report.best_latent_name}", report.best_latent),
        ("length and token counts", report.tokens),
        ("labels shuffled", report.shuffled),
    ]
    for name, found in rows:
        add_row(table, name, f"{found.value:.3f}", f"{found.low:.3f}–{found.high:.3f}")
    console.print(table)
    console.print(_latents(probe, console))
    if len(probe.latents) > _LATENTS:
        console.print(Text(f"the first {_LATENTS} of {len(probe.latents)}", style="dim"))


def _latents(probe: Probe, console: Console) -> Table:
    table = plain_table("What it reads")
    table.add_column("latent", style="dim", no_wrap=True)
    if not is_narrow(console):
        add_words(table, "label")
    add_numbers(table, "weight", "share")
    for latent in probe.latents[:_LATENTS]:
        label = [] if is_narrow(console) else [fitted(visible(latent.label), _LABEL_CELLS)]
        add_row(table, latent.name, *label, coloured(signed(latent.weight), latent.weight), share(latent.share))
    return table


def show_scores(scores: Scores, console: Console | None = None) -> None:
    """Print a probe's score at each token: of a long prompt, at the tokens with the largest ones either way.

    Args:
        scores: The scores.
        console: Where to print; None for standard output.
    """
    console = console or Console()
    table = plain_table(
        f"{visible(scores.probe_name)}: {_said(scores.whole)} (all of the text: {signed(scores.whole)})"
    )
    add_words(table, "token")
    add_numbers(table, "score")
    add_words(table, "mostly")
    known = [position for position, score in enumerate(scores.scores_p) if not math.isnan(score)]
    largest = sorted(known, key=lambda position: -abs(scores.scores_p[position]))[:_ROWS]
    for position in sorted(largest):
        score = scores.scores_p[position]
        mostly = ", ".join(f"{name} {signed(adds)}" for name, _, adds in scores.latents[position][:2])
        add_row(table, at(scores.tokens[position], position), coloured(signed(score), score), mostly)
    console.print(table)
    if len(known) > len(largest):
        console.print(Text(f"the {len(largest)} of {len(known)} tokens with the largest scores", style="dim"))


def show_disagreements(found: Disagreements, console: Console | None = None) -> None:
    """Print where a probe says one thing and the text another: how many, then the clearest of them.

    Args:
        found: The comparison.
        console: Where to print; None for standard output.
    """
    console = console or Console()
    table = plain_table(
        f"{visible(found.probe_name)}: the probe and what is said, over {count(len(found.rows), 'text')}"
    )
    add_words(table, "", style="bold")
    add_numbers(table, "said: yes", "said: no")
    for name, held in (("probe: yes", True), ("probe: no", False)):
        add_row(table, name, f"{found.number(held, True):,}", f"{found.number(held, False):,}")
    console.print(table)
    apart = found.apart
    if not apart:
        console.print("They never part ways.")
        return
    listed = plain_table(f"They part ways in {len(apart):,}")
    add_words(listed, "text")
    add_words(listed, "probe", min_width=5)
    add_words(listed, "said", min_width=4)
    add_numbers(listed, "score")
    for row in apart[:_ROWS]:
        add_row(listed, short(row.text, 200), _yes(row.holds), _yes(row.says), coloured(signed(row.score), row.score))
    console.print(listed)
    if len(apart) > _ROWS:
        console.print(Text(f"the {_ROWS} with the largest scores", style="dim"))


def _said(score: float) -> str:
    chance = 1 / (1 + math.exp(-max(-500.0, min(500.0, score))))
    return f"{'yes' if score > 0 else 'no'}, p = {plain(chance)}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
