"""Crosscoders through every verb, against dense float64 matrices.

Letters: P positions, F features, K depths, D d_model.
"""

from __future__ import annotations

import pytest
import torch
from cases import load_case
from dense_evaluation import DenseEvaluation, DenseLayer, check_equal, contexts_of, random_texts
from sae_samples import write_crosscoder
from safetensors.torch import load_file

from crosstrace.graphs import prune
from crosstrace.replacement_model import Add, BaseModel, ReplacementModel, Saes, Site, open_sae
from crosstrace.replacement_model.architectures.hooks import changed
from crosstrace.replacement_model.readouts.feature_stream import stream_sites
from crosstrace.tracer import evaluate, read, trace, with_latents, with_written_latents

CPU = torch.device("cpu")
DEPTHS = (0, 2, 3)
PROMPT = "The capital of the state containing Dallas is"


def files(folder) -> list[dict[str, torch.Tensor]]:
    paths = [folder / f"params_layer_{index}.safetensors" for index in range(len(DEPTHS))]
    return [{key: tensor.double() for key, tensor in load_file(path).items()} for path in paths]


def residuals(model, ids) -> dict[int, torch.Tensor]:
    """The residual stream (P, D) float64 after every layer, and wherever it is read."""
    seen: dict[int, torch.Tensor] = {}
    places = [(layer, Site.RESIDUAL) for layer in range(model.description.n_layers)]
    wanted = torch.ones(1, len(ids), dtype=torch.bool)
    stream_sites(model, places, torch.tensor([ids]), wanted, lambda place, x: seen.update({place[0]: x.double()}))
    return seen


def test_a_weakly_causal_one_is_evaluated_by_its_definition(tmp_path):
    case = load_case("skip_transcoder")
    model = BaseModel.from_pretrained(case.model, CPU)
    folder = write_crosscoder(tmp_path / "crosscoder", DEPTHS, model.description.d_model)
    texts = random_texts(model)
    layers = {
        depth: DenseLayer(
            *(file[key] for key in ("w_enc", "b_enc", "threshold")),
            {DEPTHS[later]: file["w_dec"][:, later] for later in range(index, len(DEPTHS))},
            file["b_dec"],
        )
        for index, (depth, file) in enumerate(zip(DEPTHS, files(folder), strict=True))
    }
    report = evaluate(model, open_sae(folder), texts, context_length=20, batch_tokens=60)
    check_equal(report, DenseEvaluation(case.model, layers, "resid_post").report(contexts_of(model, texts, 20)))
    assert report.cross_layer


def test_an_acausal_one_is_evaluated_by_its_definition(tmp_path):
    case = load_case("skip_transcoder")
    model = BaseModel.from_pretrained(case.model, CPU)
    folder = write_crosscoder(tmp_path / "crosscoder", DEPTHS, model.description.d_model, acausal=True)
    stored, texts = files(folder), random_texts(model)
    report = evaluate(model, open_sae(folder), texts, context_length=20, batch_tokens=60)
    wanted = {depth: [] for depth in DEPTHS}
    made = {depth: [] for depth in DEPTHS}
    active, losses = [], {name: [] for name in ("model", "zero", *DEPTHS)}
    for context in contexts_of(model, texts, 20):
        stream = residuals(model, context)
        h_pf = sum(stream[depth][1:] @ file["w_enc"] for depth, file in zip(DEPTHS, stored, strict=True))
        h_pf = h_pf + stored[0]["b_enc"]
        a_pf = h_pf * (h_pf > stored[0]["threshold"])
        active.append(a_pf != 0)
        new = {depth: a_pf @ file["w_dec"] + file["b_dec"] for depth, file in zip(DEPTHS, stored, strict=True)}
        for depth in DEPTHS:
            wanted[depth].append(stream[depth][1:])
            made[depth].append(new[depth])
        for name in losses:
            losses[name].append(loss(model, context, name, new.get(name)))
    fired_pf = torch.cat(active)
    for row, depth in zip(report.layers, DEPTHS, strict=True):
        x_pd, y_pd = torch.cat(wanted[depth]), torch.cat(made[depth])
        assert row.layer == depth
        assert row.l0 == pytest.approx(fired_pf.sum(1).double().mean().item(), abs=1e-3)
        assert row.dead == pytest.approx((~fired_pf.any(0)).double().mean().item(), abs=1e-3)
        variance = (x_pd - x_pd.mean(0)).square().sum()
        assert row.fvu == pytest.approx(((x_pd - y_pd).square().sum() / variance).item(), rel=1e-4)
        delta = (torch.cat(losses[depth]) - torch.cat(losses["model"])).mean().item()
        assert row.ce_delta == pytest.approx(delta, rel=1e-3, abs=1e-4)
    # The deepest reconstruction stands for the stream, whatever is put in its place before.
    assert report.all.ce_replaced - report.all.ce_model == pytest.approx(report.layers[-1].ce_delta, rel=1e-3, abs=1e-4)
    assert report.all.ce_zero == pytest.approx(torch.cat(losses["zero"]).mean().item(), rel=1e-4)


def loss(model, context, name, new_pd) -> torch.Tensor:
    """Cross-entropies of the counted tokens, with one depth's residual stream replaced after the first position."""

    def splice(site_bpd):
        if name == "model":
            return None
        spliced_bpd = site_bpd.clone()
        spliced_bpd[0, 1:] = 0 if name == "zero" else new_pd.to(site_bpd)
        return spliced_bpd

    depth = DEPTHS[-1] if name in ("model", "zero") else name
    tokens_p = torch.tensor(context)
    with torch.no_grad(), changed([(model.sites.layers[depth].whole, False, splice)]):
        normed_pd = model.sites.run(model.sites.embed(tokens_p[None]))[0]
    logits_pv = model.sites.unembed(normed_pd).double()
    return -logits_pv.log_softmax(-1)[1:-1].gather(1, tokens_p[2:, None])[:, 0]


@pytest.fixture(scope="module")
def demo() -> ReplacementModel:
    return ReplacementModel.demo("cpu")


@pytest.mark.parametrize("acausal", [False, True])
def test_it_is_read_at_every_token(acausal, demo, tmp_path):
    folder = write_crosscoder(tmp_path / "crosscoder", DEPTHS, demo.description.d_model, acausal=acausal)
    reading, stored = read(demo, PROMPT, open_sae(folder), top=10**6), files(folder)
    stream = residuals(demo, reading.token_ids)
    inputs = [stream[depth] @ file["w_enc"] for depth, file in zip(DEPTHS, stored, strict=True)]
    h = {3: sum(inputs) + stored[0]["b_enc"]} if acausal else {}
    for depth, h_pf, file in zip(DEPTHS, inputs, stored, strict=True):
        h |= {} if acausal else {depth: h_pf + file["b_enc"]}
    found = {(one.layer, one.position, one.feature): one.activation for one in reading.latents}
    expected = {}
    for depth, h_pf in h.items():
        threshold_f = stored[0 if acausal else DEPTHS.index(depth)]["threshold"]
        for position, feature in (h_pf > threshold_f).nonzero().tolist():
            if position:
                expected[depth, position, feature] = h_pf[position, feature].item()
    assert len(expected) > 20
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("acausal", [False, True])
def test_steering_leaves_the_decoder_at_each_depth(acausal, demo, tmp_path):
    """What is added to the stream by depth k is the decoder's row k, when nothing between the depths answers to it."""
    folder = write_crosscoder(tmp_path / "crosscoder", DEPTHS, demo.description.d_model, acausal=acausal)
    used, stored = Saes(open_sae(folder), CPU), files(folder)
    own = 3 if acausal else 2
    rows = [file["w_dec"][7] for file in stored] if acausal else list(stored[1]["w_dec"][7, 1:])
    edits = with_latents([Add(f"resid_post/{own}/7@-1", 2.0)], demo, [used])
    assert [edit.where.layer for edit in edits] == list(used.reader.written_layers(own))
    total = torch.zeros(len(rows[0]), dtype=torch.float64)
    for edit, row_d in zip(edits, rows, strict=True):
        total += edit.amount * edit.where.vector_d.double()
        torch.testing.assert_close(total, 2 * row_d, rtol=1e-5, atol=1e-6)


def test_a_latent_that_reads_one_depth_can_be_traced(demo, tmp_path):
    folder = write_crosscoder(tmp_path / "causal", DEPTHS, demo.description.d_model)
    reader = open_sae(folder)
    graph = trace(demo, PROMPT, ["resid_post/2/7@6"], saes=[reader], max_feature_nodes=0, progress=False)
    assert graph.completeness_error() < 1e-4
    acausal = open_sae(write_crosscoder(tmp_path / "acausal", DEPTHS, demo.description.d_model, acausal=True))
    with pytest.raises(ValueError, match=r"reads layers 0, 2, 3 of .* together; only latents that read one layer"):
        trace(demo, PROMPT, ["resid_post/3/7@6"], saes=[acausal], max_feature_nodes=0, progress=False)


def test_written_latents_are_products_with_what_each_depth_reads(demo, tmp_path):
    folder = write_crosscoder(tmp_path / "acausal", DEPTHS, demo.description.d_model, acausal=True)
    graph = prune(trace(demo, PROMPT, max_feature_nodes=40, progress=False))
    shown = with_written_latents(graph, demo, [Saes(open_sae(folder), CPU)], top=48).settings["latents"]
    stored = files(folder)
    assert shown
    for name, effects in shown.items():
        layer, feature = (int(part) for part in name[1:].split("/"))
        rows_jd = demo.transcoders.decoder_rows(layer, torch.tensor([feature]))[0].double()
        for latent, effect in effects:
            number = int(latent.split("/")[2])
            parts = [
                rows_jd[: depth - layer + 1].sum(0) @ file["w_enc"][:, number]
                for depth, file in zip(DEPTHS, stored, strict=True)
                if depth >= layer
            ]
            assert effect == pytest.approx(float(sum(parts)), rel=1e-4, abs=1e-5)
