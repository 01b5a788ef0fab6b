"""Features that play the same part in different prompts: those whose names say the prompt's own values.

In a prompt of which it is known that `state` is Texas, a feature named "Texas" stands for *its state*, as one named "Ohio"
does where `state` is Ohio. So the values of a prompt's slots and metadata are put back into the names of its features:
"say Austin (Texas)" becomes "say {capital} ({state})", and features of different prompts with the same name of this kind, at
positions of the same role, are one node.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from crosstrace.graphs.cards.labels import GUESS_MARK, MARK, OWN_TOKEN, WEAK_GUESS_MARK, is_automatic


def varying(metadata: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys under which prompts have texts that differ: what may be said of one prompt and not of all."""
    keys = dict.fromkeys(key for one in metadata for key in one)
    found = []
    for key in keys:
        values = [one.get(key) for one in metadata]
        if all(value is None or isinstance(value, str) for value in values) and len(set(values) - {None}) > 1:
            found.append(key)
    return found


def in_terms_of(name: str, values: Mapping[str, str]) -> str | None:
    """Return a feature's name with values replaced by their keys; None if it says none of them.

    A label that somebody gave may hold values anywhere, as whole words. Of automatic labels and guesses, which list tokens,
    the first promoted token counts, or else the first that the feature fires on.

    Args:
        name: What the feature is called.
        values: By key.

    Example:
        >>> in_terms_of("say Austin (Texas)", {"state": "Texas", "capital": "Austin"})
        'say {capital} ({state})'
        >>> in_terms_of("~ → AG, ag", {"answer": "AG"})
        '→ {answer}'
    """
    values = {key: value.strip() for key, value in values.items() if value.strip()}
    if is_automatic(name):
        return _automatic(name, values)
    # The longest first: "New York" is not "York".
    of_value = {value: key for key, value in reversed(values.items())}
    if not of_value:
        return None
    either = "|".join(re.escape(value) for value in sorted(of_value, key=len, reverse=True))
    found, n = re.subn(rf"(?<!\w)(?:{either})(?!\w)", lambda match: f"{{{of_value[match[0]]}}}", name)
    return found if n else None


def its(name: str) -> str:
    """Return such a name as people say it: `say {capital}` becomes "say its capital"."""
    return re.sub(r"\{([^{}]+)\}", lambda match: f"its {match[1]}", name)


def _automatic(name: str, values: Mapping[str, str]) -> str | None:
    words = name.removeprefix(MARK).replace(WEAK_GUESS_MARK, GUESS_MARK).strip()
    fires, arrow, promotes = words.partition(GUESS_MARK)
    if arrow and (key := _key_of(promotes, values)):
        return f"{GUESS_MARK} {{{key}}}"
    if key := _key_of(fires.removeprefix(OWN_TOKEN), values):
        return f"on {{{key}}}"
    return None


def _key_of(listed: str, values: Mapping[str, str]) -> str | None:
    first = listed.partition(",")[0].strip().removesuffix("…").strip().strip("'␣").casefold()
    return next((key for key, value in values.items() if value.casefold() == first), None) if first else None
