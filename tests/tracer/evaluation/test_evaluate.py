"""Every figure of an evaluation equals its recomputation with dense float64 matrices, whatever the dictionary is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from cases import CASE_NAMES, load_case, write_circuit_tracer
from dense_evaluation import DenseEvaluation, DenseLayer, check_equal, contexts_of, random_texts
from sae_samples import write_family, write_sae

from crosstrace.replacement_model import (
    BaseModel,
    ReplacementModel,
    Saes,
    Transcoders,
    demo,
    open_sae,
    open_transcoders,
)
from crosstrace.tracer import evaluate

CPU = torch.device("cpu")
TEXTS = [
    "The capital of the state containing Dallas is Austin .",
    "",
    "Lyon is a city in France . The capital of France is Paris .",
    "Paris",
    "Dallas is a city in Texas . The capital of Texas is Austin . Sacramento is the capital of California .",
]


def stored_layers(folder: Path, k: int | None = None) -> dict[int, DenseLayer]:
    files = sorted(folder.glob("**/params*.safetensors"), key=lambda path: int(_number(path)))
    return {layer: DenseLayer.read(path, layer, k) for layer, path in enumerate(files)}


def _number(path: Path) -> str:
    name = path.stem if path.stem.startswith("params_layer") else path.parent.name
    return next(part for part in name.split("_") if part.isdigit())


@pytest.mark.parametrize("name", CASE_NAMES)
def test_transcoders_of_every_kind(name):
    case = load_case(name)
    model = BaseModel.from_pretrained(case.model, CPU)
    texts = random_texts(model)
    report = evaluate(model, open_transcoders(case.transcoders), texts, context_length=20, batch_tokens=60)
    contexts = contexts_of(model, texts, 20)
    check_equal(report, DenseEvaluation(case.model, stored_layers(case.transcoders), "mlp").report(contexts))
    assert report.predictions == sum(len(context) - 2 for context in contexts)


def test_the_demo():
    model = ReplacementModel.demo(CPU)
    report = evaluate(model, model.transcoders, TEXTS, batch_tokens=40)
    expected = DenseEvaluation(demo.MODEL_DIR, stored_layers(demo.TRANSCODERS_DIR), "mlp").report(
        contexts_of(model, [text for text in TEXTS if text], 64)
    )
    check_equal(report, expected)
    assert report.layers[0].l0_config == pytest.approx(1.04)


def test_a_top_k(tmp_path):
    case = load_case("skip_transcoder")
    folder = write_circuit_tracer(case, tmp_path / "ct")
    config = yaml.safe_load((folder / "config.yaml").read_text()) | {"activation": "topk", "k": 4}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    from safetensors.torch import load_file, save_file

    for path in folder.glob("layer_*.safetensors"):
        tensors = load_file(path)
        tensors.pop("activation_function.threshold")
        save_file(tensors, path)
    model = BaseModel.from_pretrained(case.model, CPU)
    texts = random_texts(model)
    report = evaluate(model, open_transcoders(folder), texts, context_length=16)
    expected = DenseEvaluation(case.model, stored_layers(case.transcoders, k=4), "mlp")
    check_equal(report, expected.report(contexts_of(model, texts, 16)))
    assert report.layers[0].l0 == 4


@pytest.mark.parametrize("layout", ["clt_plain_gqa", "skip_transcoder"])
def test_circuit_tracer_files_have_the_figures_of_the_same_weights(layout, tmp_path):
    case = load_case(layout)
    model = BaseModel.from_pretrained(case.model, CPU)
    texts = random_texts(model)
    theirs = evaluate(model, open_transcoders(write_circuit_tracer(case, tmp_path / "ct")), texts)
    check_equal(theirs, evaluate(model, open_transcoders(case.transcoders), texts).to_dict(), 1e-6)


@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (2,), (1, 3)])
@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "attn_out"])
def test_saes(site, layers, tmp_path):
    case = load_case("skip_transcoder")
    model = BaseModel.from_pretrained(case.model, CPU)
    size = model.description
    width = size.n_heads * size.head_dim if site == "attn_out" else size.d_model
    family = write_family(tmp_path, layers, site, width)
    texts = random_texts(model)
    report = evaluate(model, open_sae(family), texts, context_length=20)
    files = {
        layer: DenseLayer.read(family.parent / f"layer_{layer}_{family.name}" / "params.safetensors", layer)
        for layer in layers
    }
    check_equal(report, DenseEvaluation(case.model, files, site).report(contexts_of(model, texts, 20)))
    assert [layer.l0_config for layer in report.layers] == [10 + layer for layer in layers]


def test_figures_do_not_depend_on_the_batch():
    model = BaseModel.from_pretrained("demo", CPU)
    texts = TEXTS * 8
    reader = open_transcoders(demo.TRANSCODERS_DIR)
    small, large = (evaluate(model, reader, texts, 250, layer_tokens=100, batch_tokens=n) for n in (1, 500))
    check_equal(small, large.to_dict(), 1e-5)
    assert small.tokens == 250
    assert (small.layer_tokens, small.layer_predictions) == (large.layer_tokens, large.layer_predictions)
    assert 100 <= small.layer_tokens < 140


def test_a_dictionary_in_bfloat16_and_in_little_memory_is_measured_as_it_is_used():
    model = BaseModel.from_pretrained("demo", CPU)
    reader = open_transcoders(demo.TRANSCODERS_DIR)
    usual = evaluate(model, Transcoders(reader, CPU), TEXTS)
    streamed = evaluate(model, Transcoders(reader, CPU, memory_budget="3MB"), TEXTS)
    check_equal(streamed, usual.to_dict(), 1e-5)
    rounded = evaluate(model, Transcoders(reader, CPU, torch.bfloat16), TEXTS)
    assert rounded.all.ce_replaced == pytest.approx(usual.all.ce_replaced, abs=0.05)


def test_a_perfect_dictionary_costs_nothing(tmp_path):
    """An SAE of the identity: every dimension and its negative is a feature."""
    from safetensors.torch import save_file

    model = BaseModel.from_pretrained("demo", CPU)
    width = model.description.d_model
    folder = write_sae(tmp_path / "sae", 3, "resid_post", width)
    both = torch.cat([torch.eye(width), -torch.eye(width)], 1)
    zeros = torch.zeros(2 * width)
    save_file(
        {
            "w_enc": both,
            "w_dec": both.T.contiguous(),
            "b_enc": zeros,
            "threshold": zeros.clone(),
            "b_dec": torch.zeros(width),
        },
        folder / "params.safetensors",
    )
    report = evaluate(model, open_sae(folder), TEXTS)
    assert report.layers[0].fvu < 1e-10
    assert report.layers[0].l0 == pytest.approx(width, rel=0.01)
    assert report.layers[0].ce_delta == pytest.approx(0, abs=1e-5)
    assert report.all.ce_score == pytest.approx(1, abs=1e-5)
    assert report.all.top1 == 1


def test_excluded_positions_are_neither_touched_nor_counted():
    model = BaseModel.from_pretrained("demo", CPU, excluded_first=3)
    reader = open_transcoders(demo.TRANSCODERS_DIR)
    report = evaluate(model, reader, TEXTS[:1])
    expected = DenseEvaluation(demo.MODEL_DIR, stored_layers(demo.TRANSCODERS_DIR), "mlp", excluded=3)
    check_equal(report, expected.report(contexts_of(model, TEXTS[:1], 64)))


def test_the_report_is_written_with_the_keys_of_its_format(tmp_path):
    model = BaseModel.from_pretrained("demo", CPU)
    report = evaluate(model, open_transcoders(demo.TRANSCODERS_DIR), ["Paris"], layer_tokens=0)
    report.write(tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert set(found) >= {"tokens", "layers", "all"}
    assert set(found["layers"][0]) >= {"layer", "l0", "fvu", "dead", "frequent", "ce_delta"}
    assert set(found["all"]) == {"ce_model", "ce_replaced", "ce_zero", "ce_score", "kl", "top1"}
    assert found["layers"][0]["ce_delta"] is None
    assert found["all"]["ce_model"] is None  # one token, and none follows
    assert found["layers"][0]["fvu"] is None  # nothing varies


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tokens": 0}, "tokens: 0 is too few"),
        ({"layer_tokens": -1}, "tokens for single layers: -1 is too few"),
        ({"batch_tokens": 0}, "tokens at a time: 0 is too few"),
        ({"context_length": 1}, "contexts of 1 tokens do not suit"),
        ({"texts": [" "]}, "has no text of more than 1 tokens"),
        ({"texts": []}, "nothing to read"),
    ],
)
def test_bad_settings_are_named(settings, said):
    model = BaseModel.from_pretrained("demo", CPU)
    arguments = {"texts": TEXTS} | settings
    with pytest.raises(ValueError, match=said):
        evaluate(model, open_transcoders(demo.TRANSCODERS_DIR), **arguments)


def test_a_dictionary_of_another_model_is_refused(tmp_path):
    model = BaseModel.from_pretrained("demo", CPU)
    with pytest.raises(ValueError, match=r"do not fit model crosstrace-demo: layers is 5"):
        evaluate(model, open_transcoders(load_case("clt_plain_gqa").transcoders), TEXTS)
    with pytest.raises(ValueError, match=r"output is 32 wide in the SAE and 128 in the model"):
        evaluate(model, open_sae(write_sae(tmp_path / "a", 1, "resid_post", 32)), TEXTS)
    with pytest.raises(ValueError, match=r"it reads layer 7, and the model has layers 0 to 5"):
        evaluate(model, open_sae(write_sae(tmp_path / "b", 7, "resid_post", 128)), TEXTS)
    with pytest.raises(ValueError, match="an SAE writes what it reads"):
        Saes(open_transcoders(demo.TRANSCODERS_DIR), CPU)
