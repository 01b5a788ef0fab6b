"""The real weights: read from GGUF as the quantiser meant them, and run as `transformers` runs them."""

from __future__ import annotations

import os

import pytest
import torch

from crosstrace.replacement_model import Freeze
from crosstrace.replacement_model.architectures.gguf import dequantised

pytestmark = pytest.mark.real

# Prompts that the model knows how to continue, and the probability of the top token.
KNOWN = [
    ("The National Digital Analytics Group (ND", "AG", 0.98),
    ("Fact: Michael Jordan plays the sport of", " basketball", 0.61),
    ("The Eiffel Tower is in the city of", " Paris", 0.50),
    ('The opposite of "small" is "', "large", 0.34),
]
TEXT = "The Eiffel Tower is in the city of Paris.\n\nIts 330 metres 🙂 are <start_of_turn> taller than 東京タワー's."


def test_a_second_use_reads_the_cache(gguf_file, folder):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert dequantised(str(gguf_file)) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not [name for name in os.listdir(folder.parent) if name.startswith(".")]


@pytest.mark.parametrize(("prompt", "answer", "probability"), KNOWN)
def test_it_knows_what_it_should(model, prompt, answer, probability):
    probabilities = model.local(prompt).logits().softmax(-1)
    assert model.token_strings(probabilities.topk(1).indices) == [answer]
    assert probabilities.max().item() == pytest.approx(probability, abs=0.03)


def test_float32_logits_are_those_of_transformers(skip_model, gemma):
    ids = skip_model.tokenize(TEXT)
    expected = gemma(ids[None]).logits[0]
    local = skip_model.local(ids)
    assert (local.logits() - expected[-1]).abs().max() < 1e-3
    found = skip_model.intervene(local, [], positions=range(len(ids))).logits_qv
    assert (found - expected).abs().max() < 1e-3
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    restored = skip_model.forward(ids, errors_lpd=local.errors_lpd).logits_v
    assert (restored - expected[-1]).abs().max() < 1e-2


def test_bfloat16_logits_are_those_of_transformers(model, gemma, folder):
    import transformers

    ids = model.tokenize(TEXT)
    stored = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval().requires_grad_(False)
    assert stored.dtype == torch.bfloat16
    # The arithmetic is float32; embeddings are the stored module's own, whose factor sqrt(640) is a bfloat16.
    embedded = stored.model.embed_tokens(ids[None]).float()
    expected = gemma(inputs_embeds=embedded).logits[0, -1]
    found = model.local(ids).logits()
    assert (found - expected).abs().max() < 1e-3
    # All in bfloat16, activations too, it is the same model but for rounding.
    rounded = stored(ids[None]).logits[0, -1].float()
    assert (found.softmax(-1) - rounded.softmax(-1)).abs().sum() < 0.2


@pytest.mark.parametrize("attention", ["frozen", "free"])
def test_no_interventions_change_nothing(model, attention):
    """Whatever is recomputed: of thousands of features none may leave its side of the threshold by rounding."""
    local = model.local(TEXT)
    assert len(local.activations.values) > 5000
    outcome = model.intervene(local, [], Freeze.iterative(attention=attention))
    assert (outcome.became_active, outcome.became_inactive) == (0, 0)
    assert (outcome.logits_v - local.logits()).abs().max() < 1e-3
