"""Cards from a corpus: as a look at every activation gives them; the same in any batches, interrupted or not."""

from __future__ import annotations

import os
import shutil
import signal
from collections import defaultdict

import numpy as np
import pytest
import torch
from graph_samples import HOSTILE

from crosstrace.graphs.cards.feature_cards import FeatureCards
from crosstrace.graphs.tensor_file import map_tensors
from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.demo import CARDS_FILE, MODEL_DIR, TRANSCODERS_DIR, load_facts
from crosstrace.replacement_model.demo.corpus import sentences
from crosstrace.replacement_model.fingerprints import weight_fingerprints
from crosstrace.replacement_model.texts import Corpus, Texts
from crosstrace.tracer import defaults, trace
from crosstrace.tracer.cards import build as cards_module
from crosstrace.tracer.cards import file as card_file
from crosstrace.tracer.cards.build import build_cards
from crosstrace.tracer.cards.log import Window
from crosstrace.tracer.cards.lookup import cards_of
from crosstrace.tracer.cards.run import CardRun, CardsInterrupted
from crosstrace.tracer.cards.tops import rounded

WINDOW = Window(before=3, after=2)
SETTINGS = {"top": 4, "window": WINDOW, "logits": 5, "progress": False}


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.demo("cpu")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [sentence.text for sentence in sentences(load_facts())][::97]


@pytest.fixture(scope="module")
def built(model, texts, tmp_path_factory) -> FeatureCards:
    return build_cards(model, texts, tmp_path_factory.mktemp("cards") / "cards.safetensors", **SETTINGS)


def brute_force(model: ReplacementModel, texts: list[str]):
    """For each (layer, feature) all activations, and its top contexts as (value, context number, peak, tokens)."""
    every, candidates = defaultdict(list), defaultdict(list)
    for number, text in enumerate(texts):
        tokens = model.tokenize(text)
        active = model.local(tokens).activations
        values = rounded(active.values.numpy()).tolist()
        mine = defaultdict(dict)
        for (layer, position, feature), value in zip(active.indices.tolist(), values, strict=True):
            mine[layer, feature][position] = value
            every[layer, feature].append(value)
        for key, fires in mine.items():
            peak = min(fires, key=lambda p: (-fires[p], p))
            candidates[key].append(
                (fires[peak], number, peak, tuple(tokens[max(peak - WINDOW.before, 0) : peak + 1].tolist()))
            )
    tops = {}
    for key, rows in candidates.items():
        best = {}
        for row in sorted(rows, key=lambda row: (-row[0], row[1])):
            best.setdefault(row[3], row)
        tops[key] = list(best.values())[: SETTINGS["top"]]
    return every, tops


def test_cards_are_those_of_a_look_at_every_activation(model, texts, built):
    every, tops = brute_force(model, texts)
    assert set(built) == set(every)
    assert built.positions == sum(len(model.tokenize(text)) - 1 for text in texts)
    exact = 0
    for key, rows in tops.items():
        contexts = built.contexts(key)
        values = [max(context.activations) for context in contexts]
        # One pass at batch 1, the other padded: a rounded bit may differ, and then so may the order of near ties.
        np.testing.assert_allclose(values, [row[0] for row in rows], rtol=2e-3)
        exact += [(c.tokens[c.peak], c.start + c.peak) for c in contexts] == [
            (model.token_strings(model.tokenize(texts[row[1]]))[row[2]], row[2]) for row in rows
        ]
        card = built[key]
        assert card["firing_rate"] == len(every[key]) / built.positions
        assert sum(card["histogram"]["counts"]) == len(every[key])
        edges = card["histogram"]["edges"]
        assert edges[-2] * (1 - 1e-4) <= card["max_activation"] <= edges[-1] * (1 + 1e-4)
    assert exact >= 0.97 * len(tops)


def test_windows_hold_the_feature_at_every_token(model, texts, built):
    for key in list(built)[::29]:
        for context in built.contexts(key):
            shown = " ".join(context.tokens).removeprefix("<bos> ")
            tokens = model.tokenize(next(text for text in texts if shown in text))
            active = model.local(tokens).activations
            here = (active.layers == key[0]) & (active.features == key[1])
            values = torch.zeros(len(tokens))
            values[active.positions[here]] = active.values[here]
            there = values[context.start : context.start + len(context.tokens)]
            np.testing.assert_allclose(context.activations, there, rtol=2e-3, atol=1e-6)
            assert context.peak <= WINDOW.before
            assert len(context.tokens) - context.peak - 1 <= WINDOW.after


def test_batches_of_any_size_give_the_same_cards(model, texts, built, tmp_path):
    other = build_cards(model, texts, tmp_path / "one.safetensors", batch_tokens=1, **SETTINGS)
    assert set(other) == set(built)
    same = 0
    for key in built:
        one, two = built[key], other[key]
        assert one["firing_rate"] == two["firing_rate"]
        assert one["promoted"] == two["promoted"]
        assert abs(one["max_activation"] - two["max_activation"]) <= 2e-3 * one["max_activation"]
        same += one["contexts"] == two["contexts"] and one["histogram"] == two["histogram"]
    assert same >= 0.97 * len(built)


def test_the_same_run_gives_the_same_bytes(model, texts, built, tmp_path):
    again = build_cards(model, Texts(texts), tmp_path / "again.safetensors", **SETTINGS)
    assert again.path.read_bytes() == built.path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.safetensors"]  # the run's folder is gone


@pytest.mark.parametrize("stop_after", [1, 2, 5])
def test_interrupted_and_resumed_gives_the_same_file(model, texts, built, tmp_path, monkeypatch, stop_after):
    settings = {**SETTINGS, "batch_tokens": 120}
    whole = build_cards(model, texts, tmp_path / "whole.safetensors", **settings)
    path = tmp_path / "cards.safetensors"
    press_ctrl_c_after(stop_after, monkeypatch)
    with pytest.raises(CardsInterrupted, match=r"state is kept in .*partial: continue with .*--resume"):
        build_cards(model, texts, path, **settings)
    monkeypatch.undo()
    assert not path.exists()
    with pytest.raises(ValueError, match=r"holds an interrupted run; continue it with --resume"):
        build_cards(model, texts, path, **settings)
    # A resumed run keeps its batches, so that the same sums are rounded the same way.
    resumed = build_cards(model, texts, path, resume=True, **SETTINGS)
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert not path.with_name("cards.safetensors.partial").exists()


def test_interrupted_while_logits_are_worked_out(model, texts, built, tmp_path, monkeypatch):
    path, done, real = tmp_path / "cards.safetensors", [], card_file.direct_logits

    def direct_logits(model, layer, *args, **options):
        done.append(layer)
        if done == [0, 1, 2]:
            os.kill(os.getpid(), signal.SIGINT)
        return real(model, layer, *args, **options)

    monkeypatch.setattr(card_file, "direct_logits", direct_logits)
    with pytest.raises(CardsInterrupted):
        build_cards(model, texts, path, **SETTINGS)
    done.clear()
    assert build_cards(model, texts, path, resume=True, **SETTINGS).path.read_bytes() == built.path.read_bytes()
    assert done == [2, 3, 4, 5]


def press_ctrl_c_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a batch, which is then finished."""
    done = []
    real = cards_module.add_batch

    def add_batch(*args):
        done.append(1)
        if len(done) == batches:
            os.kill(os.getpid(), signal.SIGINT)
        real(*args)

    monkeypatch.setattr(cards_module, "add_batch", add_batch)


def test_a_failure_in_the_middle_of_a_batch_costs_no_more_than_the_last_save(model, texts, tmp_path, monkeypatch):
    settings = {**SETTINGS, "batch_tokens": 120}
    whole = build_cards(model, texts, tmp_path / "whole.safetensors", **settings)
    path, done, real = tmp_path / "cards.safetensors", [], cards_module.stream_features

    def run_out(model, tokens, wanted, sink, *options):
        done.append(1)
        if len(done) < 4:
            return real(model, tokens, wanted, sink, *options)

        def half(layer, *arrays):
            if layer == 3:
                raise MemoryError("no more")
            sink(layer, *arrays)

        return real(model, tokens, wanted, half)

    monkeypatch.setattr(cards_module, "stream_features", run_out)
    monkeypatch.setattr(defaults, "CARDS_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(defaults, "CARDS_SAVE_SHARE", 1e9)
    message = "not enough memory for 120 tokens at a time: give fewer with --batch-tokens and continue with --resume"
    with pytest.raises(MemoryError, match=message):
        build_cards(model, texts, path, **settings)
    monkeypatch.undo()
    assert build_cards(model, texts, path, resume=True, **settings).path.read_bytes() == whole.path.read_bytes()


def test_arrays_in_files_give_the_same_cards(texts, built, tmp_path):
    model = ReplacementModel.demo("cpu", memory_budget=1000)
    spilled = build_cards(model, texts, tmp_path / "cards.safetensors", **SETTINGS)
    assert spilled.path.read_bytes() == built.path.read_bytes()


def test_a_broken_line_keeps_what_was_read(model, texts, tmp_path):
    path, corpus = tmp_path / "cards.safetensors", tmp_path / "corpus.jsonl"
    lines = [f'{{"text": "{text}"}}' for text in texts]
    corpus.write_text("\n".join([*lines[:40], "{", *lines[40:]]))
    settings = {**SETTINGS, "batch_tokens": 120}
    with pytest.raises(ValueError, match=r"corpus\.jsonl, line 41: not JSON.*--skip-broken"):
        build_cards(model, corpus, path, **settings)
    _, state = map_tensors(tmp_path / "cards.safetensors.partial" / "state.safetensors")
    assert len(state["0.features"])
    source = Corpus([corpus], skip_broken=True)
    resumed = build_cards(model, source, path, resume=True, **settings)
    assert (resumed.corpus["texts"], source.broken) == (len(texts), 1)


def test_a_run_of_something_else_is_not_gone_on_with(model, texts, tmp_path, monkeypatch):
    path = tmp_path / "cards.safetensors"
    press_ctrl_c_after(1, monkeypatch)
    with pytest.raises(CardsInterrupted):
        build_cards(model, texts, path, batch_tokens=120, **SETTINGS)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"started with different number of contexts \(4, now 9\)"):
        build_cards(model, texts, path, resume=True, **{**SETTINGS, "top": 9})
    with pytest.raises(ValueError, match="its texts have changed"):
        build_cards(model, ["Texas has the capital Austin", *texts], path, resume=True, **SETTINGS)


def test_contexts_are_cut_and_excluded_positions_left_out(model, tmp_path):
    words = "Dallas is a city in Texas"
    cards = build_cards(model, [words], tmp_path / "c.safetensors", context_length=4, progress=False)
    assert cards.corpus["contexts"] == 2
    assert cards.positions == 6
    shown = {tuple(context.tokens) for key in cards for context in cards.contexts(key)}
    assert shown <= {("<bos>", "Dallas", "is", "a"), ("<bos>", "city", "in", "Texas")}
    assert all(context.start + context.peak > 0 for key in cards for context in cards.contexts(key))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"context_length": 1}, "contexts of 1 tokens do not suit"),
        ({"context_length": 65}, "it takes at most 64"),
        ({"top": 0}, "contexts of a feature: 0 is too few"),
        ({"batch_tokens": 0}, "tokens at a time: 0 is too few"),
    ],
)
def test_settings_out_of_range(model, tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        build_cards(model, ["Texas"], tmp_path / "c.safetensors", **settings)


def test_a_folder_in_the_way(model, texts, tmp_path):
    path, folder = tmp_path / "cards.safetensors", tmp_path / "cards.safetensors.partial"
    folder.mkdir()
    (folder / "tokens.bin").write_bytes(b"begun and never saved")
    build_cards(model, texts[:3], path, **SETTINGS)
    assert not folder.exists()
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="holds something else; move it away"):
        build_cards(model, texts[:3], path, **SETTINGS)
    assert (folder / "thesis.tex").read_text() == "mine"


def test_hostile_texts(model, tmp_path):
    texts = [*HOSTILE, "<bos><bos>", "<pad> <eos> Texas", "x" * 5000, "Texas " * 500, "\x00", "\u202e"]
    cards = build_cards(model, texts, tmp_path / "c.safetensors", progress=False)
    assert cards.corpus["contexts"] > len(texts)  # long ones are cut
    assert all(cards[key]["contexts"] for key in cards)


def test_the_demo_keeps_its_own_cards(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = CARDS_FILE.read_bytes()
    assert build_cards(model, ["Texas is"], progress=False).path.absolute() == tmp_path / "cards.safetensors"
    assert CARDS_FILE.read_bytes() == before


def test_cards_lie_beside_the_transcoders(tmp_path):
    shutil.copytree(TRANSCODERS_DIR, tmp_path / "clt")
    own = ReplacementModel.from_pretrained(MODEL_DIR, tmp_path / "clt", "cpu")
    cards = build_cards(own, ["Texas is"], progress=False)
    assert cards.path == tmp_path / "clt" / "cards.safetensors"
    graph = trace(own, "Texas is")
    assert (found := cards_of(graph)) is not None
    assert found.path == cards.path
    assert cards_of(trace(ReplacementModel.demo("cpu"), "Texas is")).path == CARDS_FILE


def test_a_corpus_without_text(model, tmp_path):
    with pytest.raises(ValueError, match=r"has no text of more than 1 tokens \(2 empty, 0 broken\)"):
        build_cards(model, ["", "  "], tmp_path / "c.safetensors", progress=False)
    with pytest.raises(FileNotFoundError, match=r"output folder .* does not exist"):
        build_cards(model, ["Texas"], tmp_path / "no" / "c.safetensors")


def test_what_the_file_says_of_itself(model, texts, built):
    assert (built.model_name, built.transcoders_name) == ("crosstrace-demo", "crosstrace-demo-clt")
    assert built.fingerprints == weight_fingerprints(model)
    assert built.corpus["texts"] == built.corpus["contexts"] == len(texts)
    settings = dict(built.settings)
    assert 0 < settings.pop("coherence_by_chance") < 1
    assert settings == {
        "context_length": 64,
        "excluded_first": 1,
        "contexts": 4,
        "before": 3,
        "after": 2,
        "logits": 5,
    }


def test_room_depends_on_the_features_and_not_on_the_corpus(model, texts, tmp_path, monkeypatch):
    """The corpus four times over: the same top contexts, in arrays of the same size."""
    sizes = []
    real = CardRun.save

    def save(run):
        real(run)
        sizes.append(sum(array.nbytes for layer in run.layers for _, array in layer.arrays()) if run.finished else 0)

    monkeypatch.setattr(CardRun, "save", save)
    once = build_cards(model, texts, tmp_path / "once.safetensors", **SETTINGS)
    often = build_cards(model, texts * 4, tmp_path / "often.safetensors", **SETTINGS)
    assert sizes[0] == sizes[1] > 0
    assert len(once) == len(often)
    # Every text says again what it said before: no wording comes twice, and the rates stay.
    wordings = [[c.tokens[: c.peak + 1] for c in often.contexts(key)] for key in often]
    assert all(len({tuple(w) for w in some}) == len(some) for some in wordings)
    assert [once.firing_rate(key) for key in once] == [often.firing_rate(key) for key in often]
