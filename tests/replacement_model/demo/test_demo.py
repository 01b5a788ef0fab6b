"""The embedded demo does what the README says: it knows the facts, the transcoder stands in for its MLPs, Texas carries."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from crosstrace.graphs import AttributionGraph, graph_scores, prune, strongest_paths
from crosstrace.replacement_model import Ablate, FeatureAt, Freeze, ReplacementModel, Set
from crosstrace.replacement_model.demo import DALLAS_PROMPT, DEMO_DIR, load_facts
from crosstrace.replacement_model.demo.corpus import held_out_cities, held_out_sentences
from crosstrace.tracer import trace


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.demo("cpu")


@pytest.fixture(scope="module")
def graph(model) -> AttributionGraph:
    return trace(model, DALLAS_PROMPT)


def texas(graph: AttributionGraph) -> list[int]:
    """The nodes of features whose label says Texas."""
    return [node for node, label in enumerate(graph.feature_labels) if "Texas" in label]


def test_dallas_is_held_out_and_the_answer_is_austin(model, graph):
    assert "Dallas" in held_out_cities(load_facts())
    assert graph.logit_strings[0] == "Austin"
    assert graph.logit_probabilities[0] > 0.9


def test_dallas_graph_is_exact_and_explains_nearly_all(graph):
    assert graph.completeness_error() < 1e-5
    assert graph_scores(graph).replacement >= 0.9


def test_replacement_model_gives_the_model_s_answer_on_held_out_prompts(model):
    sentences = random.Random(0).sample(held_out_sentences(load_facts()), 50)
    right = agree = 0
    for sentence in sentences:
        original = model.local(sentence.prompt).logits().argmax()
        agree += int(model.forward(sentence.prompt).logits_v.argmax() == original)
        right += int(model.token_strings(original[None])[0] == sentence.answer)
    assert right >= 48
    assert agree >= 49


def test_texas_is_on_the_strongest_paths(graph):
    named = set(texas(graph))
    assert named
    paths = strongest_paths(prune(graph), n=5)
    assert any(named & set(path.nodes) for path in paths)


def test_texas_fires_at_dallas(model, graph):
    """The first step is where a reader looks for it: the city's state, at the city."""
    at_dallas = [node for node in texas(graph) if graph.token_strings[graph.feature_of(node)[1]] == "Dallas"]
    assert any(graph.feature_labels[node] == "Texas" for node in at_dallas)
    # ... and nobody put it there by hand: the embedding alone does not give the state away.
    embedding = model.model.get_input_embeddings().weight
    dallas, names = model.tokenize("Dallas")[-1], [state.name for state in load_facts().states]
    states = torch.stack([model.tokenize(name)[-1] for name in names])
    read = model.model.lm_head(model.model.model.norm(embedding[dallas] * embedding.shape[1] ** 0.5))[states]
    assert names[int(read.argmax())] != "Texas"


def test_california_in_texas_place_gives_sacramento(model):
    """Swapping the features of the state, all else recomputed, swaps the answer (examples/swap_states.py does it at large)."""

    def of(state: str, city: str) -> dict[FeatureAt, float]:
        active = model.local(DALLAS_PROMPT.replace("Dallas", city)).activations
        labels = model.transcoders.labels
        found = zip(active.indices.tolist(), active.values.tolist(), strict=True)
        return {
            FeatureAt(layer, feature, position): value
            for (layer, position, feature), value in found
            if state in labels.get((layer, feature), "")
        }

    texan, californian = of("Texas", "Dallas"), of("California", "Fresno")
    assert texan
    assert californian
    swap = [*(Ablate(place) for place in texan if place not in californian)]
    swap += [Set(place, value) for place, value in californian.items()]
    answer = model.intervene(DALLAS_PROMPT, swap).logits_v.argmax()
    assert model.token_strings(answer[None]) == ["Sacramento"]


def test_ablating_texas_takes_austin_away_as_no_other_features_do(model, graph):
    # Direct effects, everything else held: sets add up, so the strongest other features are the worst of all sets.
    direct = graph.adjacency[graph.layout.logits.start]
    named, austin, local = texas(graph), int(graph.logit_tokens[0]), model.local(DALLAS_PROMPT)
    others = [node for node in range(len(graph.selected_features)) if node not in named]

    def strongest(nodes: list[int], count: int) -> list[int]:
        return sorted(nodes, key=lambda node: -float(direct[node]))[:count]

    def drop(nodes: list[int]) -> float:
        found = (graph.feature_of(node) for node in nodes)
        edits = [Ablate(FeatureAt(layer, feature, position)) for layer, position, feature in found]
        return -float(model.intervene(local, edits, freeze=Freeze.direct()).logit_changes_qv[-1, austin])

    draw = random.Random(0)
    for count in (2, 3):
        taken = drop(strongest(named, count))
        assert taken > drop(strongest(others, count)) > 0
        assert taken > max(drop(draw.sample(others, count)) for _ in range(20))


def test_package_data_is_small():
    files = [path for part in ("model", "clt") for path in (Path(DEMO_DIR) / part).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10e6


def test_every_label_names_a_feature_that_exists(model):
    assert model.transcoders.labels
    for layer, feature in model.transcoders.labels:
        assert 0 <= feature < model.transcoders.reader.n_features[layer]


def test_centred_logits_leave_probabilities_alone(model, graph):
    local = model.local(DALLAS_PROMPT)
    centred = torch.tensor([local.logit_target({token: 1.0}, local.n_positions - 1).value for token in range(8)])
    logits = local.logits()
    torch.testing.assert_close(centred, (logits - logits.mean())[:8], rtol=1e-4, atol=1e-4)
