"""Cards of SAEs hold what reading each text shows; layers that the SAE lacks are empty."""

from __future__ import annotations

import pytest
import torch
from sae_samples import write_family

from crosstrace.replacement_model import BaseModel, cards_path, direct_logits, in_use, open_sae, weight_fingerprints
from crosstrace.tracer import build_cards, find_cards, read

TEXTS = ["Dallas is a city in Texas", "Paris is in the country of France", "The capital of Texas is Austin"]


@pytest.mark.parametrize(("site", "width"), [("resid_post", 128), ("attn_out", 128)])
def test_they_hold_what_reading_shows(site, width, tmp_path):
    model = BaseModel.from_pretrained("demo", "cpu")
    family = write_family(tmp_path, (1, 3), site, width)
    sae = in_use(open_sae(family), model.device)
    cards = build_cards(model, TEXTS, dictionary=sae, progress=False)
    assert cards.path == cards_path(family)
    assert cards.n_features == [0, 96, 0, 96]
    fired: dict[tuple[int, int], list[float]] = {}
    for text in TEXTS:
        for (_, layer, feature), places in read(model, text, sae, top=96).activations.items():
            fired.setdefault((layer, feature), []).extend(value for _, value in places)
    assert set(cards) == set(fired)
    for key, values in fired.items():
        assert cards.firing_rate(key) == pytest.approx(len(values) / cards.positions)
        assert cards[key]["max_activation"] == pytest.approx(max(values), rel=1e-3)
    assert find_cards(model.name, str(family), weight_fingerprints(model, sae)).path == cards.path
    reading = read(model, TEXTS[0], sae, cards={0: cards})
    latent = reading.latents[0]
    assert latent.label == cards.label((latent.layer, latent.feature))


def test_a_latent_of_attention_promotes_what_its_decoder_writes_through_the_output_projection(tmp_path):
    model = BaseModel.from_pretrained("demo", "cpu")
    sae = in_use(open_sae(write_family(tmp_path, (1,), "attn_out", 128)), model.device)
    found = direct_logits(model, 1, torch.tensor([5]), 3, dictionary=sae)
    layer = model.sites.layers[1]
    written = sae.decoder_rows(1, torch.tensor([5]))[0, 0] @ layer.output_weight().float().T
    written = written * model.sites.gain(layer.post_attention_norm) * model.sites.gain(model.sites.final_norm)
    logits = (model.sites.unembedding.float() - model.sites.mean_unembedding) @ written
    assert found.promoted[0].tolist() == logits.topk(3).indices.tolist()
