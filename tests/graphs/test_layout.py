"""The node layout: every index belongs to exactly one block and goes back to where it came from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosstrace.graphs import NodeLayout

LAYOUT = NodeLayout(n_features=3, n_layers=2, n_positions=4, n_logits=2)
sizes = st.integers(0, 4)


def test_blocks_stand_in_the_contract_order():
    assert [LAYOUT.kind(i) for i in range(LAYOUT.n)] == ["feature"] * 3 + ["error"] * 8 + ["token"] * 4 + ["logit"] * 2
    assert (LAYOUT.n, LAYOUT.n_sources) == (17, 15)
    assert LAYOUT.error_index(layer=1, position=0) == 3 + 4
    assert LAYOUT.token_index(2) == 3 + 8 + 2
    assert LAYOUT.logit_index(1) == 16


@given(K=sizes, L=sizes, P=sizes, k=sizes)
def test_index_and_inverse_agree(K, L, P, k):
    layout = NodeLayout(K, L, P, k)
    indices = [layout.feature_index(i) for i in range(K)]
    indices += [layout.error_index(layer, p) for layer in range(L) for p in range(P)]
    indices += [layout.token_index(p) for p in range(P)] + [layout.logit_index(i) for i in range(k)]
    assert indices == list(range(layout.n))
    for part, kind in ((layout.features, "feature"), (layout.errors, "error"), (layout.tokens, "token")):
        assert {layout.kind(i) for i in range(layout.n)[part]} <= {kind}
    assert [layout.error_of(i) for i in range(layout.n)[layout.errors]] == [(a, p) for a in range(L) for p in range(P)]
    assert [layout.logit_of(i) for i in range(layout.n)[layout.logits]] == list(range(k))


@pytest.mark.parametrize(
    "call",
    [
        lambda: LAYOUT.feature_index(3),
        lambda: LAYOUT.error_index(0, 4),
        lambda: LAYOUT.error_index(-1, 0),
        lambda: LAYOUT.token_index(-1),
        lambda: LAYOUT.kind(17),
    ],
)
def test_out_of_range_is_refused(call):
    with pytest.raises(IndexError, match="out of range"):
        call()


def test_wrong_kind_is_refused():
    with pytest.raises(ValueError, match="node 0 is of kind feature, not of kind error"):
        LAYOUT.error_of(0)
