"""The demo's cards with a sample beside them, and a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import ChatServer, chat_server

from crosstrace.graphs.cards.feature_cards import FeatureCards
from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.demo import CARDS_FILE, load_facts
from crosstrace.replacement_model.demo.corpus import sentences
from crosstrace.tracer.labels.excerpts import FeatureContexts
from crosstrace.tracer.samples.build import build_sample
from crosstrace.tracer.samples.sample import sample_of_cards, sample_path


@pytest.fixture(scope="session")
def sampled(tmp_path_factory) -> Path:
    """A folder with the demo's cards and a sample of every fifth of its sentences."""
    folder = tmp_path_factory.mktemp("sampled")
    (folder / "cards.safetensors").write_bytes(CARDS_FILE.read_bytes())
    texts = [sentence.text for sentence in sentences(load_facts())][::5]
    build_sample(ReplacementModel.demo("cpu"), texts, sample_path(folder / "cards.safetensors"), progress=False)
    return folder


@pytest.fixture(scope="session")
def contexts(sampled) -> FeatureContexts:
    cards = FeatureCards(sampled / "cards.safetensors")
    return FeatureContexts(cards, sample_of_cards(cards))


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as running:
        yield running
