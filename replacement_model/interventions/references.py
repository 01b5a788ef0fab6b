"""Features as people write them: ``L3/417@7``, or a label such as ``"Texas"`` where labels are known."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

from crosstrace.replacement_model.interventions.kinds import FeatureAt, Positions, Supernode

_NUMBER = r"-?\d+"
_POSITIONS = rf"(?:{_NUMBER})?:(?:{_NUMBER})?|{_NUMBER}(?:,{_NUMBER})*"
_REFERENCE = re.compile(rf"(?P<what>.*?)(?:@(?P<at>{_POSITIONS}))?", re.DOTALL)
_FEATURE = re.compile(r"L(\d+)/(\d+)")
_MEANT_AS_FEATURE = re.compile(r"[Ll]?-?\d+/.*", re.DOTALL)


def parse_positions(text: str) -> Positions:
    """Positions as they are written: ``7``, ``-1``, ``2,5``, ``3:6``, ``3:`` (generated tokens too).

    Raises:
        ValueError: none of these.
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
    """The feature that a text names, or all features with that label as one supernode.

    Args:
        text: ``L3/417``, ``Texas`` or ``"Texas"``, each with or without ``@`` and positions; without, everywhere.
        labels: the known labels by (layer, feature), as ``Transcoders.labels``.
        also_known: other names that may have been meant, to be suggested; ``where``: says where names were looked for.

    Raises:
        ValueError: no feature has the label (close labels are suggested), or feature or positions cannot be read.

    Example:
        >>> find_features("L3/417@7", {})
        FeatureAt(layer=3, feature=417, positions=7)
        >>> find_features('"Texas"@5:', {(2, 4): "Texas", (3, 1): "Utah"}).members
        (FeatureAt(layer=2, feature=4, positions=slice(5, None, None)),)
    """
    what, at = _split(text)
    positions = None if at is None else parse_positions(at)
    if feature := _FEATURE.fullmatch(what):
        return FeatureAt(int(feature[1]), int(feature[2]), positions)
    label = _unquoted(what)
    members = [FeatureAt(*place, positions) for place, name in sorted(labels.items()) if name == label]
    if not members:
        known = {*labels.values(), *also_known}
        before, _, after = what.rpartition("@")
        if before and (_FEATURE.fullmatch(before) or before.strip('"') in known):
            parse_positions(after)  # raises
        if _MEANT_AS_FEATURE.fullmatch(what):
            raise ValueError(
                f"feature {text.strip()!r} cannot be read; write L3/417 or L3/417@7 (layer 3, feature 417)"
            )
        raise ValueError(unknown_label(label, known, where))
    return Supernode(label, tuple(members))


def split_reference(text: str) -> tuple[str, str | None]:
    """What a reference names, without quotation marks, and the positions behind ``@``, both as written.

    Example:
        >>> split_reference('"Texas"@5:')
        ('Texas', '5:')
    """
    what, at = _split(text)
    return _unquoted(what), at


def is_feature(text: str) -> bool:
    """Whether a text names one feature: ``L3/417``, with positions or without, and not in quotation marks."""
    return _FEATURE.fullmatch(_split(text)[0]) is not None


def _split(text: str) -> tuple[str, str | None]:
    match = _REFERENCE.fullmatch(text.strip())
    assert match is not None  # the pattern takes any text
    return match["what"].strip(), match["at"]


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def unknown_label(label: str, known: set[str], where: str = "") -> str:
    """What to say of a label that no feature has: the known ones that are close to it."""
    if not known:
        return f"unknown feature {label!r}: these transcoders have no labels; write features as L3/417@7"
    folded = {name.casefold(): name for name in sorted(known)}
    close = [folded[name] for name in difflib.get_close_matches(label.casefold(), folded, n=3)]
    close += sorted(name for name in known if label and label.casefold() in name.casefold() and name not in close)
    suggestion = f"close labels: {', '.join(map(repr, close[:5]))}" if close else "no label is close"
    return f"unknown feature label {label!r}{where and ' ' + where}; {suggestion} (or write features as L3/417@7)"
