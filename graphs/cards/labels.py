"""Labels for features that nobody has labelled, by fixed rules: automatic ones, which begin with `~`, and guesses.

`~ Dallas, Houston → Austin` says what the feature fires on, then what it promotes.

- *Fires on*: the token at the peak of each top context. The most common one, if at least half of the contexts have it;
  otherwise the two most common, then "…" if there are more. Case and surrounding blanks are ignored; of equally common
  tokens the one in the stronger context comes first.
- *Promotes*: the token whose logit the decoder raises most, if it stands out: if it is at least 1.2 times the expected
  largest of V normally distributed numbers of the same spread (spread · √(2 ln V), V tokens). Two tokens are named where
  the promoted tokens are coherent, that is, more alike than those of 19 in 20 random directions; if the feature does not
  fire on one token mostly, its label is these two alone. Decoders of early layers mostly do not point at tokens; then this
  part is left out, and the label is what the feature fires on.

In the last two thirds of the layers, what a feature promotes says more than what it fires on: there, a label whose
promoted tokens stand out or are coherent is these alone, up to three of them (`~ → Stuttgart, Edinburgh, Mumbai`). A
feature that promotes nothing, and fires on one token in at least four of five contexts, means that token: `~ token: of`.

Where there are no cards, only the second half is known: what the decoder promotes. A guess such as `→ AG, ag` names the
two or three tokens with the largest logits. Some tokens are always at the top, so a guess says how far it can be trusted:
where the tokens are neither coherent nor stand out, as above, it is a weak one and begins with `→?`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from crosstrace.graphs.text import short

MARK = "~"
"""How automatic labels begin."""
GUESS_MARK, WEAK_GUESS_MARK = "→", "→?"
"""How guesses begin, and those whose tokens have nothing in common that chance would not give."""
GUESS_LEGEND = f"{WEAK_GUESS_MARK} weak guess: promoted tokens no more alike than by chance"
"""What tables, pictures and pages say where they show weak guesses."""
OWN_TOKEN = "token: "
"""What stands before the token in the label of a feature that only means it."""
PROMOTED_IN_LABELS = 4
"""How many promoted tokens a label is made of at most; some of them may be shown alike."""
_STANDS_OUT = 1.2
_LONGEST = 16
_LONGEST_GUESS = 28  # of three tokens


def stands_out_at(vocabulary: int) -> float:
    """Return how many standard deviations a logit has to be above the mean of all tokens to stand out."""
    return _STANDS_OUT * math.sqrt(2 * math.log(max(vocabulary, 2)))


def automatic_label(
    peaks: Sequence[str],
    promoted: Sequence[tuple[str, float]],
    spread: float,
    vocabulary: int,
    coherent: bool | None = None,
    late: bool = False,
) -> str:
    """Return the label that this module's rule gives.

    Args:
        peaks: The token at the peak of each top context, strongest first.
        promoted: Tokens and their logits, strongest first.
        spread: Standard deviation of the logits over the vocabulary.
        vocabulary: Size of the vocabulary.
        coherent: Whether the promoted tokens are more alike than chance makes them; None where that is not known.
        late: Whether the feature is in the last two thirds of the layers.

    Tokens that hold a comma, an arrow or a tilde are quoted, as in guesses.

    Example:
        >>> automatic_label([" is", " is"], [(" Austin", 9.0)], 0.5, 820)
        '~ is → Austin'
    """
    if late and promoted and (coherent or _stands_out(promoted, spread, vocabulary)):
        # A token with less than half of the strongest logit says nothing of the feature.
        strong = [token for token, logit in promoted[:PROMOTED_IN_LABELS] if logit > promoted[0][1] / 2]
        shown_first = {token.strip().casefold(): _told_apart(token) for token in reversed(strong)}
        return f"{MARK} {GUESS_MARK} {', '.join([*shown_first.values()][::-1][:3])}"
    words: dict[str, str] = {}
    for peak in peaks:
        words.setdefault(peak.strip().casefold(), peak)
    common = Counter(peak.strip().casefold() for peak in peaks).most_common()
    shown = 1 if common and 2 * common[0][1] >= len(peaks) else 2
    label = ", ".join(_told_apart(words[word]) for word, _ in common[:shown])
    if shown < len(common) and shown > 1:
        label += " …"
    if promoted and coherent:
        told = {token.strip().casefold(): _told_apart(token) for token, _ in reversed(promoted[:PROMOTED_IN_LABELS])}
        promotes = f"→ {', '.join([*told.values()][::-1][:2])}"
        label = promotes if shown > 1 else f"{label} {promotes}"
    elif _stands_out(promoted, spread, vocabulary):
        label += f" → {_told_apart(promoted[0][0])}"
    elif common and 5 * common[0][1] >= 4 * len(peaks):
        label = f"{OWN_TOKEN}{label}"
    return f"{MARK} {label}"


def guessed_label(promoted: Sequence[tuple[str, float]], spread: float, vocabulary: int, coherent: bool) -> str:
    """Return a guess at what a feature means, from what it promotes alone; "" if it promotes nothing.

    Tokens that are shown alike, such as " Paris" and "Paris", count as one. A third token is
    named if the guess stays short. Tokens that hold a comma, an arrow or a tilde are quoted.

    Args:
        promoted: Tokens and their logits, strongest first; a few more than the guess names.
        spread: Standard deviation of the logits over the vocabulary.
        vocabulary: Size of the vocabulary.
        coherent: Whether the promoted tokens are more alike than chance makes them.

    Example:
        >>> guessed_label([("AG", 9.0), (" AG", 8.5), ("ag", 8.0), (" cat", 0.5)], 1.0, 262144, coherent=True)
        '→ AG, ag'
    """
    if not promoted or not promoted[0][1] > 0:
        return ""
    strongest = promoted[0][1]
    mark = GUESS_MARK if coherent or _stands_out(promoted, spread, vocabulary) else WEAK_GUESS_MARK
    # A token with less than half of the strongest logit says nothing of the feature.
    told = dict.fromkeys(_told_apart(token) for token, logit in promoted if logit > strongest / 2)
    guess = f"{mark} {', '.join([*told][:2])}"
    third = f", {[*told][2]}" if len(told) > 2 else ""
    return guess + third if len(guess + third) <= _LONGEST_GUESS else guess


def is_late(layer: float, n_layers: int) -> bool:
    """Say whether a feature of a layer is named by what it promotes rather than by what it fires on."""
    return 3 * layer >= n_layers


def is_automatic(label: str) -> bool:
    """Say whether nobody gave this label: it is an automatic one, or a guess."""
    return label.startswith(MARK) or is_guess(label)


def is_guess(label: str) -> bool:
    """Say whether a label is a guess, weak or not."""
    return label.startswith((f"{GUESS_MARK} ", f"{WEAK_GUESS_MARK} "))


def is_weak_guess(label: str) -> bool:
    """Say whether a label is a guess that `GUESS_LEGEND` has to explain."""
    return label.startswith(f"{WEAK_GUESS_MARK} ")


def _stands_out(promoted: Sequence[tuple[str, float]], spread: float, vocabulary: int) -> bool:
    return bool(promoted) and promoted[0][1] >= stands_out_at(vocabulary) * spread > 0


def _told_apart(token: str) -> str:
    """A token as one entry of a list that commas separate."""
    shown = short(token, _LONGEST)
    return f"'{shown}'" if set(shown) & set(",→~") else shown
