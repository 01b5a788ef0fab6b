"""Every table at 40, 80 and 120 columns, with 62 layers, long labels and wide letters: no line is longer, no number cut."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
import torch
from card_samples import write_sample
from graph_samples import capped, random_graph
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from crosstrace.graphs import FeatureCards, compare, prune
from crosstrace.graphs.analysis.comparison import LISTS, numbers_of
from crosstrace.graphs.numbers import plain, probability, share, signed
from crosstrace.replacement_model import demo
from crosstrace.replacement_model.memory import format_bytes
from crosstrace.tracer.attribution.plan import plan_trace
from crosstrace.tracer.evaluation.report import AllQuality, EvaluationReport, LayerQuality
from crosstrace.tracer.interventions.before_after import BeforeAfter, TokenChange
from crosstrace.tracer.terminal.comparison import show_comparison
from crosstrace.tracer.terminal.evaluation import show_evaluation
from crosstrace.tracer.terminal.features.card import feature_table, overview, show_card
from crosstrace.tracer.terminal.features.feature import show_feature
from crosstrace.tracer.terminal.graph import show_graph
from crosstrace.tracer.terminal.interventions import show_before_after
from crosstrace.tracer.terminal.plan import show_plan
from crosstrace.tracer.terminal.tables import beside
from crosstrace.tracer.terminal.validation import show_validation
from crosstrace.tracer.validation.direct_effects import DirectEffects
from crosstrace.tracer.validation.faithfulness import Curve
from crosstrace.tracer.validation.heads import HeadCheck
from crosstrace.tracer.validation.replacement_quality import Quality
from crosstrace.tracer.validation.total_effects import RankCorrelation, TotalEffects
from crosstrace.tracer.validation.validate import Validation

WIDTHS = pytest.mark.parametrize("width", [40, 80, 120])
WIDE = [
    "中文字符中文字符中文字符中文字符",
    "👩‍👩‍👧🇫🇷" * 6,
    " antidisestablishmentarianism" * 3,
    "]",
    "[bold]",
    "한국어 글자 아주 긴 낱말",
]
LAYERS = 62


def printed(show, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True, legacy_windows=False)
    show(console)
    text = console.file.getvalue()
    for line in text.splitlines():
        assert cell_len(line) <= width, line
    return text


def whole(text: str, number: str) -> bool:
    """Whether a number stands in a text with nothing that belongs to it cut off."""
    return re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d.,…])", text) is not None


def wide_graph():
    """Wide words in every place, activations from 1e-4 to 1e4, edges of some hundreds."""
    graph = random_graph(1, L=LAYERS, P=6, per_layer=3, k=6, density=0.3)
    n = graph.layout.n_features
    return dataclasses.replace(
        graph,
        token_strings=WIDE,
        logit_strings=WIDE,
        activations=graph.activations * 10.0 ** (torch.arange(n) % 9 - 4),
        feature_labels=[WIDE[i % 6] * 2 for i in range(n)],
        prompt="".join(WIDE) * 4,
        model_name="organisation/" + "long" * 30,
        edges=graph.edges * 123.0,
        target_values=graph.target_values * 123.0,
    )


@WIDTHS
def test_a_graph(width):
    graph = prune(wide_graph())
    text = printed(lambda console: show_graph(graph, console), width)
    for value in graph.logit_probabilities.tolist():
        assert whole(text, probability(value))
    listed = [node for node in range(graph.layout.n_features) if f"L{graph.feature_of(node)[0]}/" in text]
    features = {f"L{layer}/{feature}": node for node in listed for layer, _, feature in [graph.feature_of(node)]}
    shown = text.partition("Strongest features")[2].partition("Strongest paths")[0]
    found = [name for name in features if whole(shown, name)]
    assert len(found) >= 12
    first = graph.edges[[graph.layout.logits.start]].toarray()[0]
    complete = [
        name
        for name in found
        if whole(shown, plain(float(graph.activations[graph.selected_features[features[name]]])))
        and whole(shown, signed(float(first[features[name]])))
    ]
    assert len(complete) >= 12


@WIDTHS
def test_a_comparison(width):
    a, b = (prune(capped(wide_graph(), range(start, 150, 7)), 0.95, 0.98) for start in (0, 3))
    found = compare(a, dataclasses.replace(b, edges=b.edges * 0.7))
    found = dataclasses.replace(
        found, only_a=[dataclasses.replace(item, b=None, elsewhere=(3, 599)) for item in found.shared[:5]]
    )
    text = printed(lambda console: show_comparison(found, 8, console), width)
    for name in LISTS:
        for item in getattr(found, name)[:8]:
            assert whole(text, f"L{item.layer}/{item.feature}")
            assert all(number in text for number in numbers_of(item))


@WIDTHS
def test_an_intervention(width):
    changes = [
        TokenChange(i, string, value, value / 2, 0.21, -0.693 * 10**i)
        for i, (string, value) in enumerate(zip(WIDE, (0.99, 0.5, 0.012, 5e-7, 0.9999, 1.0), strict=True))
    ]
    result = BeforeAfter(
        prompt="".join(WIDE),
        token_strings=WIDE,
        interventions=[WIDE[0]],
        found=[WIDE[2]],
        freeze="iterative",
        errors="frozen",
        became_active=1,
        became_inactive=1234,
        before=changes,
        after=changes[::-1],
        generated_before=WIDE[2] * 3,
        generated_after=WIDE[0],
    )
    text = printed(lambda console: show_before_after(result, console), width)
    for change in changes:
        for number in (probability(change.before), probability(change.after), signed(change.log_probability_change)):
            assert whole(text, number), number
    assert "+0.21" not in text  # a logit that rises while its token becomes less likely misleads


@pytest.mark.parametrize("width", [72, 80, 120])
def test_tokens_of_an_intervention_are_not_broken(width):
    tokens = [" Sacramento", " Oklahoma City", " Washington"]
    changes = [TokenChange(i, token, 3.6e-4, 2.0e-5, 0.1, -12.91) for i, token in enumerate(tokens)]
    result = BeforeAfter("", [], [], [], "iterative", "frozen", 0, 0, changes, changes, None, None)
    text = printed(lambda console: show_before_after(result, console), width)
    assert all(text.count(token.strip()) == 2 for token in tokens)
    side_by_side = any("top before" in line and "top after" in line for line in text.splitlines())
    assert side_by_side == (width == 120)  # where there is room


@WIDTHS
def test_a_validation(width):
    norms = [0.5 * 0.93**layer for layer in range(LAYERS)]
    rank = RankCorrelation(0.5, 0.25, 0.75)
    curves = [
        Curve("keep", "zero", [0, 1], [0.0, 1.0], 0.912, 12345, 0.87),
        Curve("remove", "mean", [0], [1.0], 123.4, 7, -0.0004),
    ]
    validation = Validation(
        prompt="".join(WIDE) * 3,
        model_name="organisation/" + "long" * 30,
        transcoders_name=WIDE[0],
        target="[bold]",
        direct=DirectEffects(1, 123456, 1e-6, 2.3e-7, 1.0, [], []),
        heads=HeadCheck([(17, 3)], 8, 123456, 2.3e-7, 0.123, [1.0], [1.0], [1.1]),
        total=TotalEffects([], [], [], [], [], [], rank, rank, rank),
        curves=curves,
        quality=Quality(599, 0.997, True, 0.01, 3.0, norms),
    )
    text = printed(lambda console: show_validation(validation, console), width)
    for layer, norm in enumerate(norms):
        assert any(line.split()[:2] == [f"L{layer}", share(norm)] for line in text.splitlines())
    for curve in curves:
        assert whole(text, plain(curve.area))
        assert whole(text, plain(curve.pruned_recovered))
    assert "[bold]" in text
    assert "1 source doubled, 123,456" in " ".join(text.split())
    assert "1 head taken out, 8 targets, 123,456 edges" in " ".join(text.split())


@WIDTHS
def test_pieces_beside_a_title_are_whole_and_stand_below_one_another(width):
    pieces = [f"piece {number} 中文{'x' * number} +0.{number}" for number in range(10)]
    text = printed(lambda console: console.print(beside("  from ", map(Text, pieces), width)), width)
    lines = text.splitlines()
    assert all(any(piece in line for line in lines) for piece in pieces)
    assert lines[0].startswith("  from piece 0")
    assert all(line.startswith("       piece") for line in lines[1:])
    longer = printed(lambda console: console.print(beside("to ", [Text("word " * width), Text("end")], width)), width)
    assert longer.split().count("word") == width


@WIDTHS
def test_cards(tmp_path, width):
    strings = [string[:40] for string in WIDE]
    cards = FeatureCards(write_sample(tmp_path / "cards.safetensors", strings))
    keys = list(cards)
    printed(overview_of(cards), width)
    found = dict.fromkeys(keys, "automatic label")
    table = printed(lambda console: console.print(feature_table(cards, keys, {}, WIDE[2], found)), width)
    for key in keys:
        assert whole(table, f"L{key[0]}/{key[1]}")
        assert share(cards.firing_rate(key)) in table
    printed(lambda console: show_card(cards, keys[0], console, WIDE[2]), width)
    graph = wide_graph()
    key = graph.feature_key(0)
    text = printed(lambda console: show_feature(graph, key, None, console), width)
    assert f"L{key[0]}/{key[1]}" in text


@WIDTHS
def test_a_plan(width):
    plan = plan_trace(demo.MODEL_DIR, demo.TRANSCODERS_DIR, "The capital of the state containing Dallas is")
    text = printed(lambda console: show_plan(plan, console), width)
    for part in plan.parts:
        assert format_bytes(part.n_bytes) in text


def overview_of(cards):
    def show(console):
        console.print(overview(cards))

    return show


@WIDTHS
@pytest.mark.parametrize("n_layers", [1, LAYERS])
def test_an_evaluation(width, n_layers):
    layers = [
        LayerQuality(layer, 262_144, 123.4 + layer, 98.7, 0.1234, 12.3, 0.0123, 0.999, -5.6e-5, 1.2e-5)
        for layer in range(n_layers)
    ]
    everything = AllQuality(3.12, 5.46, 10.3, 2.34, 0.34)
    report = EvaluationReport(
        *("org/" + "long-name/" * 9, WIDE[0], "in", "out", True, ["texts"], 256, 1_000_000, 999_000, 1024, 1020),
        layers=layers,
        all=everything,
    )
    text = printed(lambda console: show_evaluation(report, console), width)
    assert all(whole(text, plain(layer.l0)) for layer in layers)
    for number in (plain(0.1234), signed(-5.6e-5), plain(3.12), signed(5.46 - 3.12), share(everything.ce_score)):
        assert whole(text, number), number
    assert whole(text, plain(12.3)) == (width >= 80)
    assert whole(text, "mean") == (n_layers > 1)
