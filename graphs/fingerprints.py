"""Comparing the fingerprints of weights that graphs and cards keep.

A fingerprint may come in several versions, under `NAME` and `NAME/2`: the later one sees more of the weights. What was
made before a version existed lacks it.
"""

from __future__ import annotations

from collections.abc import Mapping

_NEWEST = 2


def same_weights(name: str, one: Mapping[str, str] | None, other: Mapping[str, str] | None) -> bool | None:
    """Compare the newest version of a fingerprint that both sides have.

    Args:
        name: `model` or `transcoders`.
        one: The fingerprints of one side, as `graph.settings["fingerprints"]` holds them.
        other: Those of the other side.

    Returns:
        None if the sides have no version in common.

    Example:
        >>> same_weights("model", {"model": "a", "model/2": "b"}, {"model": "a"})
        True
    """
    for key in _versions(name):
        ours, theirs = (one or {}).get(key), (other or {}).get(key)
        if ours and theirs:
            return ours == theirs
    return None


def is_newest(name: str, one: Mapping[str, str] | None) -> bool:
    """Say whether a fingerprint is there in its newest version, which sees every kind of weight."""
    return bool((one or {}).get(_versions(name)[0]))


def same_fingerprints(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Say whether nothing that both sides have is different."""
    return all(other[key] == value for key, value in one.items() if key in other)


def _versions(name: str) -> list[str]:
    return [f"{name}/{version}" for version in range(_NEWEST, 1, -1)] + [name]
