"""Features as people write them: by number, `L3/417@7`, or by a label such as `"Texas"` where labels are known.

This is the one reader of that notation; interventions, targets of a trace and the commands all use it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

from crosstrace.replacement_model.interventions.kinds import FeatureAt, Positions, Supernode

_NUMBER = r"-?\d+"
_POSITIONS = rf"(?:{_NUMBER})?:(?:{_NUMBER})?|{_NUMBER}(?:,{_NUMBER})*"
_REFERENCE = re.compile(rf"(?P<name>.*?)(?:@(?P<at>{_POSITIONS}))?", re.DOTALL)
_FEATURE = re.compile(r"L?(\d+)/(\d+)")
_MADE = re.compile(r"~ (?P<bare>.+?)(?: [01]\.\d\d)?", re.DOTALL)
_MEANT_AS_FEATURE = re.compile(r"[Ll]-?\d+/.*|-?\d+/-?\d+(?:@.*)?", re.DOTALL)


def parse_feature(text: str, labels: Collection[str] = ()) -> FeatureAt | None:
    """Read a feature that is written by number: `L3/417` or `3/417`, with or without `@` and positions.

    Args:
        text: What somebody wrote.
        labels: Known labels. A text that is one of them is not taken for a mistyped feature.

    Returns:
        The feature, or None if the text names something else, such as a label or a token.

    Raises:
        ValueError: The text is written like a feature, but its numbers or its positions cannot be read.

    Example:
        >>> parse_feature("L3/417@7")
        FeatureAt(layer=3, feature=417, positions=7)
        >>> parse_feature("Texas") is None
        True
    """
    name, at = _split(text)
    if feature := _FEATURE.fullmatch(name):
        return FeatureAt(int(feature[1]), int(feature[2]), None if at is None else parse_positions(at))
    if _unquoted(name) in labels or not _MEANT_AS_FEATURE.fullmatch(name):
        return None
    before, _, after = name.rpartition("@")
    if _FEATURE.fullmatch(before):
        parse_positions(after)  # raises
    raise ValueError(f"feature {text.strip()!r} cannot be read; write L3/417 or L3/417@7 (layer 3, feature 417)")


def parse_positions(text: str) -> Positions:
    """Read positions: `7`, `-1`, `2,5`, `3:6`, or `3:`, which reaches generated tokens too.

    Raises:
        ValueError: The text is none of these.
    """
    if not re.fullmatch(_POSITIONS, text):
        raise ValueError(f"positions {text!r} cannot be read; write 7, -1, 2,5, 3:6 or 3: (generated tokens too)")
    if ":" in text:
        start, stop = (int(end) if end else None for end in text.split(":"))
        return slice(start, stop)
    numbers = tuple(map(int, text.split(",")))
    return numbers[0] if len(numbers) == 1 else numbers


def find_features(
    text: str, labels: Mapping[tuple[int, int], str], also_known: Collection[str] = (), where: str = ""
) -> FeatureAt | Supernode:
    """Find the feature that a text names, or all features with that label as one supernode.

    Args:
        text: `L3/417`, `Texas` or `"Texas"`, each with or without `@` and positions; without, everywhere.
        labels: The known labels by (layer, feature), as in `Transcoders.labels`.
        also_known: Other names to suggest if the label is unknown.
        where: Where names were looked up, for the message.

    Returns:
        A feature written by number, or a supernode named after the label.

    Raises:
        ValueError: No feature has the label (close labels are suggested), or feature or positions cannot be read.

    Example:
        >>> find_features("L3/417@7", {})
        FeatureAt(layer=3, feature=417, positions=7)
        >>> find_features('"Texas"@5:', {(2, 4): "Texas", (3, 1): "Utah"}).members
        (FeatureAt(layer=2, feature=4, positions=slice(5, None, None)),)
    """
    if feature := parse_feature(text, labels.values()):
        return feature
    name, at = _split(text)
    label = _unquoted(name)
    positions = None if at is None else parse_positions(at)
    members = tuple(
        FeatureAt(*key, positions) for key, given in sorted(labels.items()) if label in (given, bare_label(given))
    )
    if members:
        return Supernode(label, members)
    known = {*labels.values(), *map(bare_label, labels.values()), *also_known}
    before, _, after = name.rpartition("@")
    if before and before.strip('"') in known:
        parse_positions(after)  # raises
    raise ValueError(unknown_label(label, known, where))


def bare_label(label: str) -> str:
    """Return a label without the mark and the score that a program's label is shown with.

    Example:
        >>> bare_label("~ Texas 0.93")
        'Texas'
    """
    match = _MADE.fullmatch(label)
    return match["bare"] if match else label


def name_and_positions(text: str) -> tuple[str, str | None]:
    """Split a reference into its name, without quotation marks, and the positions after `@`, both as written.

    Example:
        >>> name_and_positions('"Texas"@5:')
        ('Texas', '5:')
    """
    name, at = _split(text)
    return _unquoted(name), at


def is_feature(text: str) -> bool:
    """Say whether a text names one feature by number, with or without positions, and is not in quotation marks."""
    return _FEATURE.fullmatch(_split(text)[0]) is not None


def unknown_label(label: str, known: Collection[str], where: str = "") -> str:
    """Word the error for a label that no feature has, with the known labels closest to it.

    Args:
        label: The label that was asked for.
        known: All labels and other names that would have been understood.
        where: Where they were looked up.
    """
    if not known:
        return f"unknown feature {label!r}: these transcoders have no labels; write features as L3/417@7"
    folded = {name.casefold(): name for name in sorted(known)}
    close = [folded[name] for name in difflib.get_close_matches(label.casefold(), folded, n=3)]
    close += sorted(name for name in known if label and label.casefold() in name.casefold() and name not in close)
    suggestion = f"close labels: {', '.join(map(repr, close[:5]))}" if close else "no label is close"
    return f"unknown feature label {label!r}{where and ' ' + where}; {suggestion} (or write features as L3/417@7)"


def _split(text: str) -> tuple[str, str | None]:
    match = _REFERENCE.fullmatch(text.strip())
    assert match is not None  # the pattern matches any text
    return match["name"].strip(), match["at"]


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
