"""Progress of generations: each token is reported, and whoever watches may end the work there."""

from __future__ import annotations

import pytest

from crosstrace.replacement_model import ReplacementModel, Scale
from crosstrace.tracer import before_and_after
from crosstrace.tracer.progress import watched

PROMPT = "The capital of the state containing Dallas is"
UNCHANGED = Scale("Texas", 1.0)


class LeftError(Exception):
    pass


@pytest.fixture(scope="module")
def model():
    return ReplacementModel.demo("cpu")


def test_each_token_of_both_generations_is_reported(model):
    seen: list[tuple[str, int, int]] = []
    with watched(lambda *told: seen.append(told)):
        found = before_and_after(model, PROMPT, [UNCHANGED], max_new_tokens=2)
    steps = [told for told in seen if told[0].startswith("generating")]
    expected = [(what, i, 2) for what in ("generating with interventions", "generating without") for i in range(3)]
    assert steps == expected
    assert found.generated_before == found.generated_after


def test_who_watches_ends_it_at_a_token_and_leaves_the_model_as_it_was(model):
    before = model.local(PROMPT).logits(8)

    def leave(what: str, done: int, total: int) -> None:
        if done == 2:
            raise LeftError(what)

    with watched(leave), pytest.raises(LeftError, match="with interventions"):
        before_and_after(model, PROMPT, [UNCHANGED], max_new_tokens=20)
    assert model.local(PROMPT).logits(8).equal(before)
