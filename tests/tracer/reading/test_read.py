"""Reading a prompt: what is read is what each dictionary's reference encodes, whatever it is read beside.

Letters: P positions, D the width of a site.
"""

from __future__ import annotations

import json

import pytest
import torch
from sae_samples import write_family, write_sae

from crosstrace.kernels import encode_reference
from crosstrace.replacement_model import BaseModel, ReplacementModel, Site, open_sae
from crosstrace.replacement_model.dictionaries.latents import parse_latent
from crosstrace.replacement_model.readouts.feature_stream import stream_sites
from crosstrace.tracer.reading.read import read
from crosstrace.tracer.reading.report import reading_as_dict, write_reading

PROMPT = "The capital of the state containing Dallas is"


@pytest.fixture(scope="module")
def model() -> BaseModel:
    return BaseModel.from_pretrained("demo", "cpu")


def expected(model: BaseModel, reader, layer: int) -> dict[tuple[int, int], float]:
    """Activations by (position, feature), from the model's own vectors and the plain reference."""
    ids = torch.tensor(model.tokenizer(PROMPT)["input_ids"])
    wanted = torch.ones(1, len(ids), dtype=torch.bool)
    seen = {}
    stream_sites(model, [(layer, reader.reads)], ids[None], wanted, lambda place, x: seen.update({place: x}))
    encoder = reader.encoder(layer)
    positions, features, values = encode_reference(
        seen[layer, reader.reads][1:], encoder.w_enc_df, encoder.b_enc_f, encoder.threshold_f
    )
    return dict(zip(zip((positions + 1).tolist(), features.tolist(), strict=True), values.tolist(), strict=True))


@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "attn_out"])
def test_it_reads_what_the_reference_encodes(site, model, tmp_path):
    width = {"attn_out": Site.ATTENTION_HEADS}.get(site, Site.RESIDUAL).width(model.description)
    reader = open_sae(write_family(tmp_path, (1, 4), site, width))
    reading = read(model, PROMPT, reader, top=10**6)
    for layer in (1, 4):
        wanted = expected(model, reader, layer)
        got = {(one.position, one.feature): one.activation for one in reading.latents if one.layer == layer}
        assert got.keys() == wanted.keys()
        assert got == pytest.approx(wanted, rel=1e-4)
        [measured] = [one for one in reading.dictionaries[0].layers if one.layer == layer]
        assert measured.measured == pytest.approx(len(wanted) / (len(reading.tokens) - 1))
        assert measured.expected == 10 + layer


def test_the_strongest_are_kept_and_the_rest_of_their_activations_too(model, tmp_path):
    reader = open_sae(write_sae(tmp_path / "layer_2_width_1k_l0_small", 2, "resid_post", 128))
    reading, wanted = read(model, PROMPT, [reader], top=3), expected(model, reader, 2)
    for position in range(1, len(reading.tokens)):
        here = sorted((-value, feature) for (at, feature), value in wanted.items() if at == position)[:3]
        found = [one for one in reading.latents if one.position == position]
        assert [one.feature for one in found] == [feature for _, feature in here]
    for (_, _, feature), places in reading.activations.items():
        assert dict(places) == pytest.approx({at: v for (at, f), v in wanted.items() if f == feature}, rel=1e-4)
    shown = reading.strongest(4)
    peaks = sorted((max(v for _, v in places) for places in reading.activations.values()), reverse=True)
    assert [max(v for _, v in reading.activations[key]) for key in shown] == peaks[:4]


def test_several_dictionaries_are_read_in_one_pass_as_each_alone(model, tmp_path):
    one = open_sae(write_sae(tmp_path / "a" / "layer_2_width_1k_l0_small", 2, "resid_post", 128))
    two = open_sae(write_sae(tmp_path / "b" / "layer_2_width_1k_l0_small", 2, "resid_post", 128, seed=1))
    both = read(model, PROMPT, [one, two])
    for number, alone in enumerate((one, two)):
        latents = [(x.layer, x.position, x.feature, x.activation) for x in both.latents if x.dictionary == number]
        assert latents == [(x.layer, x.position, x.feature, x.activation) for x in read(model, PROMPT, alone).latents]


def test_transcoders_are_read_the_same_way():
    model = ReplacementModel.demo("cpu")
    reading, active = read(model, PROMPT, top=10**6), model.local(PROMPT).activations
    got = {(one.layer, one.position, one.feature): one.activation for one in reading.latents}
    assert got == pytest.approx(
        dict(zip(map(tuple, active.indices.tolist()), active.values.tolist(), strict=True)), rel=1e-3
    )
    assert reading.name((0, 3, 417)) == "L3/417"


def test_json_and_page_hold_it(model, tmp_path):
    reading = read(model, PROMPT, open_sae(write_family(tmp_path, (1,), "resid_post", 128)))
    write_reading(reading, tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert found == json.loads(json.dumps(reading_as_dict(reading)))
    assert found["tokens"] == list(reading.tokens)
    first = found["latents"][0]
    assert {"sae", "layer", "position", "feature", "activation", "label"} <= first.keys()
    at = parse_latent(first["latent"])
    assert (at.site, at.layer, at.feature, at.position) == (Site.RESIDUAL, 1, first["feature"], first["position"])
    write_reading(reading, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text("utf-8")
    assert '"crosstrace-reading-page"' in page
    assert "{{" not in page.partition('id="data">')[0]
    with pytest.raises(ValueError, match=r"r\.txt: a reading is written as \.json or \.html"):
        write_reading(reading, tmp_path / "r.txt")


def test_an_l0_far_from_the_config_is_one_line_with_both_numbers(model, tmp_path):
    folder = write_sae(tmp_path / "layer_2_width_1k_l0_small", 2, "resid_post", 128)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"l0": 2000}))
    [line] = read(model, PROMPT, open_sae(folder)).notes()
    assert "layer 2 most:" in line
    assert "measured and 2,000 expected" in line


def test_what_cannot_be_read_is_one_line(model, tmp_path):
    with pytest.raises(ValueError, match="no dictionary is named to read crosstrace-demo with"):
        read(model, PROMPT)
    with pytest.raises(ValueError, match="top is 0"):
        read(model, PROMPT, open_sae(write_family(tmp_path, (1,), "resid_post", 128)), top=0)
    with pytest.raises(ValueError, match="does not fit model crosstrace-demo: output is 64 wide"):
        read(model, PROMPT, open_sae(write_sae(tmp_path / "layer_2_width_1k_l0_small", 2, "resid_post", 64)))
    with pytest.raises(ValueError, match="carry no latents"):
        read(model, "<bos>", open_sae(write_sae(tmp_path / "c" / "layer_2_width_1k_l0_small", 2, "resid_post", 128)))
    with pytest.raises(ValueError, match="there is no site 'resid'; known are"):
        parse_latent("resid/12/417@7")
