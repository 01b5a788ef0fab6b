"""Contexts side by side: every token is where it was, and nothing else is counted."""

import numpy as np
import pytest

from crosstrace.replacement_model.padding import pad, without_first

CONTEXTS = [[2, 7], [2, 8, 9, 4], [2]]


def test_every_context_stands_at_the_left_of_its_row():
    tokens_bw, lengths_b = pad(CONTEXTS)
    assert [row[:length].tolist() for row, length in zip(tokens_bw, lengths_b, strict=True)] == CONTEXTS
    assert tokens_bw.shape == (3, 4)
    assert tokens_bw.sum() == sum(map(sum, CONTEXTS))


@pytest.mark.parametrize("excluded", [0, 1, np.array([0, 2, 1])])
def test_what_is_counted_are_the_tokens_after_the_excluded_first_ones(excluded):
    tokens_bw, lengths_b = pad(CONTEXTS)
    counted_bw = without_first(lengths_b, excluded)
    first_b = np.broadcast_to(excluded, 3)
    assert tokens_bw[counted_bw].tolist() == [
        token for context, first in zip(CONTEXTS, first_b, strict=True) for token in context[first:]
    ]
