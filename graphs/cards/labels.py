"""Labels for features that nobody has labelled, by one fixed rule; they begin with `~`.

`~ Dallas, Houston → Austin` says what the feature fires on, then what it promotes.

- *Fires on*: the token at the peak of each top context. The most common one, if at least half of the contexts have it;
  otherwise the two most common, then "…" if there are more. Case and surrounding blanks are ignored; of equally common
  tokens the one in the stronger context comes first.
- *Promotes*: the token whose logit the decoder raises most, if it stands out: if it is at least 1.2 times the expected
  largest of V normally distributed numbers of the same spread (spread · √(2 ln V), V tokens). Decoders of early layers
  mostly do not point at tokens; then this part is left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from crosstrace.graphs.text import short

MARK = "~"
"""How automatic labels begin."""
_STANDS_OUT = 1.2
_LONGEST = 16


def automatic_label(peaks: Sequence[str], promoted: Sequence[tuple[str, float]], spread: float, vocabulary: int) -> str:
    """Return the label that this module's rule gives.

    Args:
        peaks: The token at the peak of each top context, strongest first.
        promoted: Tokens and their logits, strongest first.
        spread: Standard deviation of the logits over the vocabulary.
        vocabulary: Size of the vocabulary.

    Example:
        >>> automatic_label([" is", " is"], [(" Austin", 9.0)], 0.5, 820)
        '~ is → Austin'
    """
    words: dict[str, str] = {}
    for peak in peaks:
        words.setdefault(peak.strip().casefold(), peak)
    common = Counter(peak.strip().casefold() for peak in peaks).most_common()
    shown = 1 if common and 2 * common[0][1] >= len(peaks) else 2
    label = ", ".join(short(words[word], _LONGEST) for word, _ in common[:shown])
    if shown < len(common) and shown > 1:
        label += " …"
    if promoted and promoted[0][1] >= _STANDS_OUT * spread * math.sqrt(2 * math.log(max(vocabulary, 2))) > 0:
        label += f" → {short(promoted[0][0], _LONGEST)}"
    return f"{MARK} {label}"
