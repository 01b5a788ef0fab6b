"""The replacement model: prompts, forward passes with and without errors."""

from __future__ import annotations

import pytest
import torch
from cases import Case
from reference import relative_error

from crosstrace.replacement_model import ReplacementModel


@pytest.fixture
def model(case: Case) -> ReplacementModel:
    return ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")


def test_with_errors_it_is_the_original_model(model, case):
    local = model.local(case.input_ids)
    output = model.forward(case.input_ids, local.errors_lpd)
    assert relative_error(output.logits_v, local.logits()) < 1e-5
    assert torch.equal(output.activations.indices, local.activations.indices)
    with torch.no_grad():
        original = model.model(torch.tensor(case.input_ids)[None]).logits[0, -1]
    assert relative_error(output.logits_v, original) < 1e-5


def test_without_errors_every_mlp_output_is_its_reconstruction(model, case):
    # Written again with hooks of its own, layer by layer from the definition.
    reader, first = model.transcoders.reader, model.description.excluded_first
    inputs: list[torch.Tensor] = []
    handles = []

    def swap(layer):
        def hook(_module, _args, output):
            swapped = torch.zeros_like(output[0])
            for source in range(layer + 1):
                encoder = reader.encoder(source)
                h = inputs[source] @ encoder.w_enc_df + encoder.b_enc_f
                a = h * (h > encoder.threshold_f)
                a[:first] = 0
                if reader.cross_layer or source == layer:
                    swapped += a @ reader.decoder_rows(source, torch.arange(a.shape[1]))[:, layer - source]
            if (skip := reader.skip(layer)) is not None:
                swapped += inputs[layer] @ skip
            swapped += reader.bias(layer)
            swapped[:first] = output[0, :first]
            return swapped[None]

        return hook

    for index, layer in enumerate(model.model.model.layers):
        handles.append(
            layer.pre_feedforward_layernorm.register_forward_hook(lambda _m, _a, output: inputs.append(output[0]))
        )
        handles.append(layer.post_feedforward_layernorm.register_forward_hook(swap(index)))
    with torch.no_grad():
        expected = model.model(torch.tensor(case.input_ids)[None]).logits[0, -1]
    for handle in handles:
        handle.remove()
    found = model.forward(case.input_ids).logits_v
    assert relative_error(found, expected) < 1e-5
    assert relative_error(found, model.local(case.input_ids).logits()) > 0.01  # it does differ from the original


def test_errors_of_another_shape_are_refused(model, case):
    with pytest.raises(ValueError, match="errors_lpd has shape"):
        model.forward(case.input_ids, torch.zeros(1, 2, 3))


def test_text_gets_bos_unless_it_starts_with_it(model):
    assert (
        model.tokenize("w5 w6").tolist() == model.tokenize("<bos>w5 w6").tolist() == [2, *model.tokenize("w5 w6")[1:]]
    )
    ids = model.tokenize("w5 w6").tolist()
    assert ids[0] == 2
    assert ids.count(2) == 1
    assert model.tokenize([5, 6]).tolist() == [5, 6]  # ids are taken as they are


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ("  \n", "the prompt is empty"),
        ([], "the prompt is empty"),
        ([2, 97], "token id 97 at position 1 is out of range; the vocabulary has ids 0 to 96"),
        ([2, -1], "token id -1 at position 1"),
        ([2] * 513, "the prompt has 513 tokens; model .* takes at most 512"),
        (torch.ones(2, 3, dtype=torch.int64), "flat list or 1-D tensor"),
        (torch.ones(3), "flat list or 1-D tensor of integers"),
    ],
    ids=str,
)
def test_prompts_that_cannot_be_used(model, prompt, message):
    with pytest.raises(ValueError, match=message):
        model.local(prompt)


def test_model_without_tokenizer_takes_ids(model, case):
    model.tokenizer = None
    with pytest.raises(ValueError, match="has no tokenizer"):
        model.local("some text")
    assert model.token_strings(model.tokenize(case.input_ids))[0] == "<2>"


def test_hooks_are_removed_when_the_forward_pass_fails(model, case, monkeypatch):
    monkeypatch.setattr(type(model.sites), "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.local(case.input_ids)
    assert not any(module._forward_hooks for module in model.model.modules())
