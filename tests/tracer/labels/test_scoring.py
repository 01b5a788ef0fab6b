"""Excerpts and tests: held out, with hard negatives, and scores that a label cannot get by chance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosstrace.tracer.labels.excerpts import Excerpt, FeatureContexts
from crosstrace.tracer.labels.label_set import Label
from crosstrace.tracer.labels.labelling import automatic_labels, literal_tests
from crosstrace.tracer.labels.scoring import (
    FEWEST,
    Marked,
    Words,
    balanced_accuracy,
    combined,
    fuzzed,
    literal_scores,
    shuffled_partner,
)


@pytest.fixture(scope="module")
def common(contexts) -> list[tuple[int, int]]:
    """Features of three layers that fire often enough for a test."""
    keys = []
    for layer in (0, 1, 3):
        order = np.argsort(-contexts.sample.fired(layer))
        keys += [(layer, int(feature)) for feature in order[5:60:5] if contexts.test((layer, int(feature)))]
    return keys


def test_a_test_has_as_many_windows_with_the_feature_as_without(contexts, common):
    assert len(common) > 20
    for key in common:
        excerpts = contexts.test(key)
        assert sum(excerpt.active for excerpt in excerpts) == len(excerpts) / 2 <= 10
        for excerpt in excerpts:
            assert any(excerpt.activations) == excerpt.active
            assert not excerpt.active or excerpt.activations[excerpt.peak] > 0


def test_half_of_the_others_are_hard_where_there_are_neighbours(contexts, common):
    kinds = [[excerpt.kind for excerpt in contexts.test(key)] for key in common]
    assert sum("hard" in found for found in kinds) > len(kinds) / 2
    for key in common[:5]:
        near = contexts.nearest(key)
        assert key not in near
        assert {layer for layer, _ in near} <= {key[0]}


def test_the_nearest_features_fire_on_the_most_similar_tokens(contexts):
    """By a few lines of their own: counts of tokens, cosine, largest first."""
    key = (1, int(np.argsort(-contexts.sample.fired(1))[20]))
    tokens = contexts.sample.token_numbers()
    fires = contexts.sample.activations(1).toarray() > 0
    counts = np.stack([np.bincount(tokens[column], minlength=tokens.max() + 1) for column in fires.T]).astype(float)
    lengths = np.linalg.norm(counts, axis=1)
    cosine = counts @ counts[key[1]] / np.maximum(lengths * lengths[key[1]], 1e-12)
    cosine[key[1]] = 0
    found = [feature for _, feature in contexts.nearest(key)]
    assert cosine[found].tolist() == pytest.approx(np.sort(cosine)[::-1][: len(found)].tolist())


def test_nothing_that_was_shown_is_in_a_test(contexts, common):
    for key in common:
        shown = {excerpt.leading for excerpt in contexts.shown(key)}
        tested = [excerpt.leading for excerpt in contexts.test(key) if excerpt.active]
        assert len(shown & set(tested)) == 0
        assert len(set(tested)) == len(tested)


def test_makers_and_tests_get_different_contexts_of_the_sample(contexts):
    held_out = contexts._held_out()
    assert 0.4 < held_out.mean() < 0.6


def test_windows_do_not_depend_on_what_was_asked_before(contexts, common):
    fresh = FeatureContexts(contexts.cards, contexts.sample)
    assert [fresh.test(key) for key in reversed(common)][::-1] == [contexts.test(key) for key in common]
    other = FeatureContexts(contexts.cards, contexts.sample, seed=1)
    assert [other.test(key) for key in common] != [contexts.test(key) for key in common]


def test_without_a_sample_there_are_examples_and_no_tests(contexts, common):
    alone = FeatureContexts(contexts.cards, None)
    assert alone.shown(common[0])
    assert alone.test(common[0]) == []
    assert alone.nearest(common[0]) == []


def test_every_other_mark_is_wrong_and_on_as_many_tokens(contexts, common):
    for key in common[:8]:
        excerpts = [excerpt for excerpt in contexts.test(key) if excerpt.active]
        items = fuzzed(contexts.test(key), key)
        assert len(items) == len(excerpts)
        for excerpt, item in zip(excerpts, items, strict=True):
            fires = [value > 0 for value in excerpt.activations]
            assert item.right == (item.marked == fires)
            assert item.right or not any(mark and fire for mark, fire in zip(item.marked, fires, strict=True))
            silent = fires.count(False)
            assert sum(item.marked) == (sum(fires) if item.right else min(sum(fires), silent))


@given(st.lists(st.booleans(), min_size=2 * FEWEST, max_size=30))
def test_saying_always_the_same_is_chance_and_the_truth_is_one(truth):
    few = min(sum(truth), len(truth) - sum(truth)) < FEWEST
    assert balanced_accuracy(truth, truth) == (None if few else 1)
    for always in (True, False):
        assert balanced_accuracy([always] * len(truth), truth) == (None if few else 0.5)
    assert balanced_accuracy([not so for so in truth], truth) == (None if few else 0)


def test_a_score_is_the_mean_of_what_could_be_tested():
    assert combined(0.5, 1.0) == 0.75
    assert combined(None, 1.0) == 1.0
    assert combined(None, None) is None


@pytest.mark.parametrize(
    ("label", "fires_on", "promotes"),
    [
        ("~ Dallas, Houston → Austin", {"dallas", "houston"}, {"austin"}),
        ("~ token: of", {"of"}, set()),
        ("~ → Des Moines, IA", set(), {"des moines", "des", "moines", "ia"}),
        ("'a, b' …", {"a", "b"}, set()),
        ("cities in Texas", {"cities in texas", "cities", "in", "texas"}, set()),
        ("", set(), set()),
    ],
)
def test_a_label_is_read_by_the_letter(label, fires_on, promotes):
    words = Words.of(label)
    assert words.fires_on == fires_on
    assert words.promotes == promotes


def test_the_letter_judges_marks_by_the_token_and_promises_by_the_next():
    words = Words.of("is → Austin")
    tokens = [" Texas", " is", " Austin", " now"]
    assert words.judge(Marked(tokens, [False, True, False, False], True))
    assert not words.judge(Marked(tokens, [True, False, False, False], True))
    assert Words.of("→ Austin").judge(Marked(tokens, [False, True, False, False], True))
    assert not Words.of("→ Austin").judge(Marked(tokens, [False, False, True, False], True))
    assert Words.of("→ Austin").detect(Excerpt(tokens, [0.0] * 4, 0, "random"))


def test_partners_are_a_round_of_all_features():
    keys = [(0, i) for i in range(7)]
    partner = shuffled_partner(keys)
    assert sorted(partner) == sorted(partner.values()) == keys
    assert all(key != other for key, other in partner.items())
    assert shuffled_partner(keys[:1]) == {}


def test_true_labels_score_high_and_shuffled_ones_at_chance(contexts, common):
    """A label that lists the very tokens on which a feature fires is found to be right, another's is not."""
    exact = {}
    for key in common:
        on = {}
        for excerpt in contexts.shown(key) + [excerpt for excerpt in contexts.test(key) if excerpt.active]:
            for token, value in zip(excerpt.tokens, excerpt.activations, strict=True):
                if value > 0:
                    on[token] = on.get(token, 0) + 1
        exact[key] = Label(", ".join(on), "test")
    found = literal_tests(contexts, exact)
    scored = [label for label in found.values() if label.score is not None and label.shuffled is not None]
    assert len(scored) > 10
    own, others = (np.mean([getattr(label, part) for label in scored]) for part in ("score", "shuffled"))
    assert own > 0.75
    assert abs(others - 0.5) < 0.12
    assert {label.scorer for label in scored} == {"literal"}


def test_automatic_labels_beat_shuffled_ones(contexts, common):
    run = automatic_labels(contexts, common)
    assert run.tested > 10
    assert run.mean_score > run.mean_shuffled + 0.1
    assert not run.labels[common[0]].text.startswith("~")
    assert run.labels[common[0]].source == "automatic"
    assert automatic_labels(contexts, common, tests=False).tested == 0


def test_few_windows_give_no_score():
    excerpts = [Excerpt(["a"], [1.0], 0, "active"), Excerpt(["b"], [0.0], 0, "random")]
    assert literal_scores("a", excerpts, []) == (None, None)
