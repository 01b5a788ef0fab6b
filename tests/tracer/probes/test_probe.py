"""Probes: what the statistics are, what a probe scores, that groups do not leak, and that baselines tell.

Letters: E texts, C columns.
"""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.sparse
import torch

pytest.importorskip("sklearn")

from crosstrace.replacement_model import BaseModel, demo, open_sae
from crosstrace.replacement_model.dictionaries.use import in_use
from crosstrace.tracer.probes.disagreements import disagreements
from crosstrace.tracer.probes.examples import Example, read_examples
from crosstrace.tracer.probes.fit import area, behind, fit, held_out, with_interval
from crosstrace.tracer.probes.pooled import Columns, Pooling, pool, token_latents
from crosstrace.tracer.probes.probe import Probe, fit_probe


@pytest.fixture(scope="module")
def model() -> BaseModel:
    return BaseModel.from_pretrained("demo", "cpu")


@pytest.fixture(scope="module")
def sae(model: BaseModel):
    return in_use(open_sae(demo.SAES_DIR), model.device)


def texts(states: int, template: str = "The state containing {city}") -> tuple[list[Example], list[Example]]:
    """Prompts that end at a city of Texas, and at cities of a few other states."""
    found: tuple[list[Example], list[Example]] = ([], [])
    some = [state for state in demo.load_facts().states if state.name != "Texas"][:states]
    texas = next(state for state in demo.load_facts().states if state.name == "Texas")
    for state in (texas, *some):
        for city in (*state.cities, state.capital):
            found[state is not texas].append(Example(template.format(city=city), city))
    return found


def test_the_area_is_the_share_of_pairs_in_order():
    generator = np.random.default_rng(0)
    scores, labels = generator.integers(0, 6, 40).astype(float), generator.random(40) < 0.4
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    assert area(scores, labels) == pytest.approx(np.mean(pairs))
    found = with_interval(scores, labels, np.arange(40), 0)
    assert found.low < found.value < found.high
    assert behind(scores, scores, labels, np.arange(40), 0) == 0
    assert behind(labels.astype(float), -labels.astype(float), labels, np.arange(40), 0) == 1


def test_weights_are_for_rows_as_they_are():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(120, 6)).astype(np.float32) * [1, 10, 100, 1, 1, 1] + 3
    labels = rows[:, 1] - rows[:, 0] > 0
    groups = np.arange(120)
    for sparse, given in ((True, scipy.sparse.csr_array(rows)), (False, rows)):
        fitted = fit(given, labels, groups, sparse, 0)
        assert area(fitted.scores(given), labels) > 0.99
        scaled = fit(given * 2, labels, groups, sparse, 0)
        assert scaled.weights_c * 2 == pytest.approx(fitted.weights_c, rel=1e-3, abs=1e-6)
    assert fit(scipy.sparse.csr_array(rows), labels, groups, True, 0).weights_c.shape == (6,)


def test_groups_stay_together_and_too_few_are_refused():
    labels, groups = np.repeat([True, False], 60), np.repeat(np.arange(24), 5)
    tested = held_out(labels, groups, 0)
    assert not set(groups[tested]) & set(groups[~tested])
    assert {True, False} == set(labels[tested]) == set(labels[~tested])
    with pytest.raises(ValueError, match="3 positive groups of texts are too few to train and test on; at least 6"):
        held_out(labels, np.repeat([0, 1, 2, *range(3, 15)], [20, 20, 20, *[5] * 12]), 0)


@pytest.mark.parametrize("pooling", list(Pooling))
def test_texts_are_pooled_as_each_token_reads(pooling, model, sae):
    examples = [
        Example(text, text) for text in ("Dallas is a city in Texas", "Paris", "The capital of Texas is Austin")
    ]
    pooled, columns = pool(model, examples, [sae], pooling), Columns.of([sae])
    for row, example in enumerate(examples):
        ids = model.tokenizer(example.text)["input_ids"]
        assert pooled.tokens[row] == ids
        [alone] = token_latents(model, [ids], [1], [sae], columns)
        dense = alone.toarray()
        wanted = {Pooling.MEAN: dense.mean(0), Pooling.LAST: dense[-1], Pooling.MAX: dense.max(0)}[pooling]
        assert pooled.latents_ec[[row]].toarray()[0] == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    assert columns.latent(columns.offsets[0, 3] + 17) == (0, 3, 17)
    assert pooled.raw_ed.shape == (3, 256)


def test_a_probe_for_texas_reads_other_cities_and_chance_does_not(model, sae, tmp_path):
    positive, negative = texts(8)
    probe = fit_probe(model, positive, negative, [sae], Pooling.LAST, name="Texas")
    report = probe.report
    assert report.latents.value > 0.9
    assert report.tokens.value < 0.8  # the city itself was not in the texts to train on
    assert 0 < report.shuffled.low < 0.9
    assert sum(latent.share for latent in probe.latents) == pytest.approx(1)
    assert report.verdict().startswith(("no better than", "the probe on latents"))
    scores = probe.score(model, "The state containing Dallas", [sae])
    assert math.isnan(scores.scores_p[0])
    assert scores.whole == pytest.approx(scores.scores_p[-1], abs=1e-5)
    added = sum(adds for _, _, adds in scores.latents[-1])
    assert len(scores.latents[-1]) == 3 or probe.bias + added == pytest.approx(scores.whole, abs=1e-5)

    probe.save(tmp_path / "texas.safetensors")
    loaded = Probe.load(tmp_path / "texas.safetensors")
    assert loaded == dataclasses.replace(probe, latents=loaded.latents)
    assert [dataclasses.astuple(one) for one in loaded.latents] == [dataclasses.astuple(one) for one in probe.latents]
    again = fit_probe(model, positive, negative, [sae], Pooling.LAST, name="Texas")
    assert again == probe

    said = [dataclasses.replace(one, says=says) for one, says in ((positive[0], False), (positive[0], True))]
    found = disagreements(model, probe, said, [sae])
    assert found.number(True, False) + found.number(False, True) == len(found.apart) == 1
    other = in_use(open_sae(demo.SAES_DIR.parent / "layer_1_width_512_l0_8"), torch.device("cpu"))
    with pytest.raises(ValueError, match="which is not among the dictionaries given"):
        probe.score(model, "Dallas", [other])


def test_a_property_of_the_words_is_seen_by_their_counts(model, sae):
    cities = [city for state in demo.load_facts().states[:6] for city in state.cities]
    positive = [Example(f"{city} is a city in", city) for city in cities]
    negative = [Example(f"The capital of the state containing {city} is", city) for city in cities]
    report = fit_probe(model, positive, negative, [sae], Pooling.MEAN).report
    assert report.tokens.value == report.latents.value == 1
    assert "length and token counts (1.000)" in report.verdict()
    assert report.verdict().startswith("no better than")


def test_labelled_texts_are_read_and_refused_by_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a b", "group": 3, "says": true}\n\n{"text": "c"}\n')
    one, two = read_examples(path)
    assert (one.text, one.group, two.group, two.place) == ("a b", "3", "c", f"{path}, line 3")
    (tmp_path / "b.txt").write_text("x\n\ny\n")
    assert [example.text for example in read_examples(tmp_path / "b.txt")] == ["x", "y"]
    for content, message in (
        ("[1]", "line 1: expected a JSON object with a text under 'text'"),
        ("{", "line 1: not JSON"),
        (json.dumps({"text": "x", "group": [1]}), "'group' is [1]"),
        ("\n", "holds no texts"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"a\.jsonl") as caught:
            read_examples(path)
        assert message in str(caught.value)
    path.write_text('{"text": "x"}')
    with pytest.raises(ValueError, match="'says' is None; expected true or false"):
        read_examples(path, says_field="says")
    with pytest.raises(ValueError, match="unknown suffix"):
        read_examples(tmp_path / "c.csv")
    (tmp_path / "not.safetensors").write_bytes(b"")
    with pytest.raises((ValueError, OSError)):
        Probe.load(tmp_path / "not.safetensors")
