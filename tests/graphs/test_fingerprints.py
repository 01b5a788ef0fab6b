"""Fingerprints of several versions are compared by the newest that both sides have."""

from __future__ import annotations

from crosstrace.graphs.fingerprints import is_newest, same_fingerprints, same_weights

OLD = {"model": "m", "transcoders": "t"}
NEW = {**OLD, "model/2": "m2", "transcoders/2": "t2", "exact": "float32 model, float32 transcoders: e"}


def test_the_newest_decides() -> None:
    assert same_weights("model", NEW, NEW) is True
    assert same_weights("model", NEW, {**NEW, "model/2": "x"}) is False
    assert same_weights("model", NEW, {**NEW, "model": "x"}) is True


def test_what_is_from_before_is_compared_by_what_it_has() -> None:
    assert same_weights("transcoders", NEW, OLD) is True
    assert same_weights("transcoders", {**OLD, "transcoders": "x"}, NEW) is False
    for nothing in (None, {}, {"model": "m"}):
        assert same_weights("transcoders", NEW, nothing) is None
    assert is_newest("model", NEW)
    assert not is_newest("model", OLD)
    assert not is_newest("model", None)


def test_states_from_before_may_be_continued() -> None:
    assert same_fingerprints(OLD, NEW)
    assert same_fingerprints({}, NEW)
    assert not same_fingerprints(NEW, {**NEW, "exact": "bfloat16"})
