"""From text to batches: every token once, in random order, and the same again after a restart."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from crosstrace.replacement_model import demo
from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.base_model import BaseModel
from crosstrace.replacement_model.demo.corpus import training_sentences
from crosstrace.replacement_model.texts import Texts
from crosstrace.replacement_model.training.data.capture import read_sites
from crosstrace.replacement_model.training.data.documents import Documents
from crosstrace.replacement_model.training.data.rows import WindowRows
from crosstrace.replacement_model.training.data.streams import ActivationStream
from crosstrace.replacement_model.training.data.windows import WindowReader
from crosstrace.replacement_model.training.settings import load_recipe

SENTENCES = [sentence.text for sentence in training_sentences(demo.load_facts())]


@pytest.fixture(scope="module")
def base():
    return BaseModel.from_pretrained("demo", "cpu")


def documents(texts, share=0.0):
    return Documents(Texts(texts), share)


def settings(**changes):
    return load_recipe(
        "laptop",
        **{"tokens": 1000, "features": 64, "batch_tokens": 64, "chunk_positions": 4, "buffer_tokens": 512} | changes,
    )


def by_the_clock(passes):
    return settings(tokens=None, minutes=1.0, buffer_passes=passes)


def reader(base, texts, length=32, seed=0, notice=lambda line: None, **more):
    return WindowReader(documents(texts), base.tokenizer, length, 2, seed, "test", notice, **more)


def test_documents_are_split_by_their_text_alone():
    split = documents(SENTENCES, 0.3)
    held_out = set(split.held_out())
    training = [text for text, _ in split.training()]
    assert 0.2 < len(held_out) / len(set(SENTENCES)) < 0.4
    assert not held_out & set(training)
    assert sorted([*split.held_out(), *training]) == sorted(SENTENCES)
    assert set(documents(SENTENCES[::-1], 0.3).held_out()) == held_out


def test_a_pass_over_the_corpus_has_every_token_once(base):
    texts = SENTENCES[:200]
    windows = reader(base, texts, length=8)
    n_tokens = sum(len(base.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    found = Counter()
    while sum(found.values()) < n_tokens:
        (window,) = windows.take_windows(1)
        assert window[0] == base.tokenizer.bos_token_id
        assert len(window) <= 8
        found.update(window[1:].tolist())
    expected = Counter(token for text in texts for token in base.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert found == expected
    assert windows.epoch == 0


def test_a_used_up_corpus_starts_again_with_other_windows_and_says_so(base):
    said = []
    windows = reader(base, [" ".join(SENTENCES[:40])], length=16, notice=said.append)
    first = {tuple(windows.take_windows(1)[0].tolist())}
    while not said:
        window = tuple(windows.take_windows(1)[0].tolist())
        if not said:
            first.add(window)
    assert "is used up after" in said[0]
    assert windows.epoch == 1
    second = {tuple(window.tolist()) for window in windows.take_windows(len(first) - 2)}
    assert len(second - first) > len(second) / 2


def test_windows_continue_where_they_were(base):
    windows = reader(base, SENTENCES[:100], block_characters=1000)
    windows.take(700)
    state = json.loads(json.dumps(windows.state()))
    expected = [window.tolist() for window in windows.take(3000)]
    again = reader(base, SENTENCES[:100], block_characters=1000)
    again.restore(state)
    assert [window.tolist() for window in again.take(3000)] == expected
    assert [w.tolist() for w in reader(base, SENTENCES[:100], seed=1).take(700)] != expected


def test_a_corpus_with_nothing_to_train_on_is_refused(base):
    with pytest.raises(ValueError, match=r"the corpus texts has no document of 2 tokens or more to train on"):
        reader(base, ["  "]).take(1)


@pytest.mark.parametrize("kind", ["clt", "sae"])
@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "attn_out"])
def test_a_fill_holds_what_passes_the_sites(base, kind, site):
    chosen = settings(kind=kind, site=site, **({"layers": [1, 4]} if kind == "sae" else {}))
    stream = ActivationStream(base, documents(SENTENCES), chosen, buffer_tokens=256)
    inputs, outputs = stream.sample(10**6)
    windows = reader_of(stream)
    expected = {}
    for site_number, wanted in enumerate(stream.sites):
        rows = []
        for window in windows:
            kept = {}
            read_sites(
                base,
                torch.from_numpy(window.astype(np.int64))[None],
                [wanted],
                stream.layers,
                lambda s, layer, value, kept=kept: kept.__setitem__(layer, value[0, 1:]),
            )
            rows.append(torch.stack([kept[layer] for layer in range(len(stream.layers))]))
        expected[site_number] = torch.cat(rows, dim=1)
    for got, want in zip((inputs, outputs), (expected[0], expected[len(stream.sites) - 1]), strict=True):
        assert got.shape == want.shape
        # The order is another; padding and the size of a batch only round differently.
        torch.testing.assert_close(sorted_rows(got), sorted_rows(want), rtol=1e-4, atol=1e-4)


def reader_of(stream):
    """The windows of a stream's first fill."""
    reader = WindowReader(documents(SENTENCES), stream.base.tokenizer, stream._reader.length, 2, 0, "activations")
    windows, room = [], stream.buffer_tokens
    while room >= reader.length:
        windows += reader.take(1)
        room -= len(windows[-1]) - 1
    return windows


def sorted_rows(values_lnd):
    return values_lnd.double().sum((0, 2)).sort().values


def test_no_layer_above_the_last_wanted_one_runs(base):
    ran = []
    handles = [
        layer.whole.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, layer in enumerate(base.sites.layers)
    ]
    try:
        read_sites(base, torch.tensor([[2, 5, 6]]), [Site.MLP_OUTPUT], [0, 2], lambda *_: None)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0, 1]


@pytest.mark.parametrize(("spilled", "passes"), [(False, 1), (True, 1), (False, 2)])
def test_a_stream_continues_where_it_was_to_the_bit(base, tmp_path, spilled, passes):
    spill, chosen = tmp_path if spilled else None, by_the_clock(passes)
    stream = ActivationStream(base, documents(SENTENCES), chosen, spill=spill)
    for _ in range(10):  # 512 positions hold less than 8 batches
        stream.next_batch()
    state = json.loads(json.dumps(stream.state()))
    expected = [stream.next_batch() for _ in range(9)]
    again = ActivationStream(base, documents(SENTENCES), chosen, spill=spill)
    again.restore(state)
    for want in expected:
        got = again.next_batch()
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])
    assert stream.tokens == again.tokens == 19 * 64
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("passes", [1, 3])
def test_batches_take_every_position_of_a_fill_once_in_each_pass(base, passes):
    stream = ActivationStream(base, documents(SENTENCES), by_the_clock(passes))
    inputs_lbd, _ = stream.sample(10**6)
    positions = inputs_lbd.shape[1]
    orders = stream._order.reshape(passes, positions)
    assert [sorted(order.tolist()) for order in orders] == passes * [list(range(positions))]
    assert len({tuple(order.tolist()) for order in orders}) == passes


def test_as_many_tokens_as_were_asked_for_are_all_different(base):
    stream = ActivationStream(base, documents(SENTENCES), settings(tokens=1000, buffer_passes=3))
    stream.next_batch()
    assert sorted(stream._order.tolist()) == list(range(len(stream._order)))


def test_a_missing_layer_is_named(base):
    with pytest.raises(ValueError, match=r"there is no layer 9 in crosstrace-demo; it has 6"):
        ActivationStream(base, documents(SENTENCES), settings(kind="sae", layers=[9]))


@pytest.mark.parametrize("joined", [False, True])
def test_rows_for_fine_tuning_continue_where_they_were(base, joined):
    texts = [" ".join(SENTENCES[i : i + 40]) for i in range(0, 400, 40)] if joined else SENTENCES
    chosen = settings(end_to_end_windows=2, end_to_end_window_tokens=32)
    rows = WindowRows(base, documents(texts), chosen)
    taken = [rows.next() for _ in range(40)]
    assert sum(part.numel() < 64 for part in taken) <= 2  # what is left over at the end of a pool
    if joined:
        assert {tuple(part.shape) for part in taken} == {(2, 32)}
    state = json.loads(json.dumps(rows.state()))
    expected = [rows.next() for _ in range(40)]
    again = WindowRows(base, documents(texts), chosen)
    again.restore(state)
    assert all(torch.equal(again.next(), want) for want in expected)
