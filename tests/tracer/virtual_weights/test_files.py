"""Global weights out to files, and from there to scipy, to cards and to pages."""

from __future__ import annotations

import io
import json
import re

import pytest
import scipy.sparse
import torch
from rich.console import Console

from crosstrace.graphs import FeatureCards, prune, write_html
from crosstrace.graphs.cards.weights import FeatureWeights, weights_path
from crosstrace.graphs.tensor_file import write_tensors
from crosstrace.replacement_model import ReplacementModel, weight_fingerprints
from crosstrace.replacement_model.demo import CARDS_FILE, DALLAS_PROMPT
from crosstrace.replacement_model.readouts.norm_scales import NormScales
from crosstrace.tracer import trace
from crosstrace.tracer.samples.build import build_sample
from crosstrace.tracer.terminal.features.card import show_card
from crosstrace.tracer.virtual_weights.compute import global_weights
from crosstrace.tracer.virtual_weights.files import write_weights

TEXTS = ["The capital of the state containing Dallas is Austin", "Dallas is a city in Texas"] * 8
CHOSEN = [(0, 120), (1, 112), (2, 411)]


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.demo("cpu")


@pytest.fixture(scope="module")
def found(model):
    return global_weights(model, CHOSEN, sample=build_sample(model, TEXTS, progress=False), top=6)


@pytest.fixture(scope="module")
def beside(model, found, tmp_path_factory):
    """The demo's cards with the weights beside them."""
    place = tmp_path_factory.mktemp("beside") / "cards.safetensors"
    place.write_bytes(CARDS_FILE.read_bytes())
    write_weights(found, weights_path(place), weight_fingerprints(model), model.transcoders.labels)
    return place


def test_what_is_written_is_read_back(found, beside):
    weights = FeatureWeights(weights_path(beside))
    assert weights.features == set(CHOSEN)
    for key in CHOSEN:
        for mine, theirs in (
            (weights.inputs(key), found.strongest_inputs(key)),
            (weights.outputs(key), found.strongest_outputs(key)),
        ):
            # a link between two of them is in the file once, though each side rounds it in its own way
            assert [(link.feature, link.together) for link in mine] == [
                (link.feature, link.together) for link in theirs
            ]
            assert [link.interference for link in mine] == [link.interference for link in theirs]
            for part in ("weight", "expected"):
                values = [[getattr(link, part) for link in links] for links in (mine, theirs)]
                assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert weights.inputs((4, 4)) == []
    assert weights.names[0, 120] == "Texas"


def test_links_through_heads_keep_their_head(model, tmp_path):
    scales = NormScales(torch.ones(6, 3))
    through = global_weights(model, CHOSEN, scales, top=4, heads=[(1, 2), (3, 0)])
    write_weights(through, tmp_path / "w.safetensors")
    weights = FeatureWeights(tmp_path / "w.safetensors")
    heads = {link.head for key in CHOSEN for link in (*weights.inputs(key), *weights.outputs(key))}
    assert heads == {(1, 2), (3, 0)}
    assert [link.feature for link in weights.outputs((0, 120))] == [
        link.feature for link in through.strongest_outputs((0, 120))
    ]


def test_scipy_reads_the_sparse_matrix(found, beside, tmp_path):
    write_weights(found, tmp_path / "w.npz")
    matrix = scipy.sparse.load_npz(tmp_path / "w.npz")
    assert matrix.shape == (6 * 512, 6 * 512)
    link = found.strongest_outputs((0, 120))[0]
    assert matrix[512 * link.feature[0] + link.feature[1], 120] == pytest.approx(link.weight)
    assert (matrix != FeatureWeights(weights_path(beside)).matrix()).nnz == 0
    assert scipy.sparse.triu(matrix).nnz == 0  # a feature feeds later layers alone


def test_cards_and_their_pages_show_the_links(model, found, beside, tmp_path):
    cards = FeatureCards(beside)
    card = cards[0, 120]
    first = found.strongest_outputs((0, 120))[0]
    assert card["outputs"][0]["feature"] == f"L{first.feature[0]}/{first.feature[1]}"
    assert card["outputs"][0]["weight"] == pytest.approx(first.weight, rel=1e-3)
    assert card["outputs"][0]["label"] == model.transcoders.labels[first.feature]
    assert "inputs" not in cards[0, 71]
    write_html(prune(trace(model, DALLAS_PROMPT)), tmp_path / "page.html", cards=cards)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', text, re.DOTALL)[1])
    assert data["cards"]["0/120"]["outputs"] == card["outputs"]


def test_the_card_on_the_screen_shows_them_too(beside):
    console = Console(width=100, record=True, file=io.StringIO())
    show_card(FeatureCards(beside), (0, 120), console, contexts=1)
    lines = console.export_text()
    assert "feeds" in lines
    assert "Texas +" in lines
    assert "fed by" not in lines


def test_weights_of_other_transcoders_are_left_out(model, found, beside, tmp_path):
    place = tmp_path / "cards.safetensors"
    place.write_bytes(CARDS_FILE.read_bytes())
    other = dict.fromkeys(weight_fingerprints(model), "others")
    write_weights(found, weights_path(place), other)
    assert "outputs" not in FeatureCards(place)[0, 120]
    assert "outputs" in FeatureCards(beside)[0, 120]


def test_files_of_others_are_refused_in_one_line(found, beside, tmp_path):
    with pytest.raises(ValueError, match=r"written as \.npz or \.safetensors"):
        write_weights(found, tmp_path / "w.csv")
    with pytest.raises(ValueError, match="not a file of global weights"):
        FeatureWeights(beside)
    write_tensors(tmp_path / "new.safetensors", ("crosstrace-weights", '{"version": 7}'), [])
    with pytest.raises(ValueError, match="written by a newer crosstrace"):
        FeatureWeights(tmp_path / "new.safetensors")
