"""Numbers as people read them: one way each for shares, probabilities, differences, weights and counts.

The interactive pages have the same rules (`viewer/src/text.ts`). No number is rounded into another statement: what is
not certain never reads as 100%, what is not zero never as 0, and what cannot be told apart at a glance keeps its digits.
"""

from __future__ import annotations

import math


def share(value: float) -> str:
    """Return a part of a whole (0 to 1) as a percentage of two or three digits.

    Example:
        >>> share(0.123), share(0.0123), share(0.00123), share(0.000012), share(0.997), share(0.99999)
        ('12.3%', '1.23%', '0.12%', '0.0012%', '99.7%', '>99.9%')
    """
    percent = 100 * value
    if not math.isfinite(percent):
        return _not_finite(percent)
    if 99.95 <= percent < 100:
        return ">99.9%"
    if 0 < percent < 0.001:
        return "<0.001%"
    return f"{_fixed(percent)}%"


def probability(value: float) -> str:
    """Return a probability, or a score from 0 to 1, with three decimals; small ones as a power of ten.

    Example:
        >>> probability(0.61), probability(5e-7), probability(0.99997), probability(1.0), probability(0.0)
        ('0.610', '5.0e-07', '>0.999', '1.000', '0')
    """
    if not math.isfinite(value):
        return _not_finite(value)
    if 0.9995 <= value < 1:
        return ">0.999"
    if 0 < abs(value) < 0.0095:
        return f"{value:.4f}" if abs(value) >= 0.00095 else f"{value:.1e}"
    return f"{value:.3f}" if value else "0"


def points(value: float) -> str:
    """Return the difference of two shares or probabilities in percentage points, with its sign.

    Example:
        >>> points(0.083), points(-0.25), points(0.0), points(-0.00004)
        ('+8.30 pp', '-25.0 pp', '0 pp', '-0.0040 pp')
    """
    value *= 100
    if not math.isfinite(value):
        return f"{_not_finite(value)} pp"
    if 0 < abs(value) < 0.001:
        return f"{value:+.0e} pp"
    return f"{'+' if value > 0 else ''}{_fixed(value)} pp"


def plain(value: float) -> str:
    """Return an activation, a norm or another size with about three digits.

    Example:
        >>> plain(1.5), plain(150.0), plain(23456.0), plain(1.5e8), plain(0.0123), plain(2e-5), plain(0.0)
        ('1.50', '150', '23,456', '1.5e+08', '0.0123', '2.0e-05', '0')
    """
    size = abs(value)
    if not math.isfinite(value):
        return _not_finite(value)
    if size == 0:
        return "0"
    if size >= 99_999.5 or size < 0.00095:
        return f"{value:.1e}"
    for limit, decimals in ((99.95, 0), (9.995, 1), (0.9995, 2), (0.0995, 3), (0.00995, 4)):
        if size >= limit:
            return f"{value:,.{decimals}f}"
    return f"{value:.5f}"


def signed(value: float) -> str:
    """Return a weight, or a change of something, as `plain` does, with its sign.

    Example:
        >>> signed(150.0), signed(-0.213), signed(0.0)
        ('+150', '-0.213', '0')
    """
    return f"+{plain(value)}" if value > 0 else plain(value)


def error(value: float) -> str:
    """Return a relative or absolute error, as a power of ten: its size matters, not its digits.

    Example:
        >>> error(2.34e-7), error(0.51), error(0.0)
        ('2.3e-07', '0.51', '0')
    """
    if not math.isfinite(value):
        return _not_finite(value)
    if value == 0:
        return "0"
    return f"{value:.2f}" if 0.01 <= abs(value) < 1000 else f"{value:.1e}"


def count(value: int, singular: str = "", plural: str = "") -> str:
    """Return a whole number with commas at the thousands, and what is counted.

    Example:
        >>> count(262144), count(1, "feature"), count(0, "feature"), count(2, "vertex", "vertices")
        ('262,144', '1 feature', '0 features', '2 vertices')
    """
    words = singular if value == 1 else plural or (f"{singular}s" if singular else "")
    return f"{value:,} {words}".rstrip()


def _fixed(percent: float) -> str:
    """A percentage: one decimal from 10, two from 1, below that two digits."""
    size = abs(percent)
    if size >= 99.95 and percent == round(percent):
        return f"{percent:.0f}"
    if size >= 9.995:
        return f"{percent:.1f}"
    if size >= 0.995:
        return f"{percent:.2f}"
    if size == 0:
        return "0"
    decimals = 1 - math.floor(math.log10(size))
    return f"{percent:.{decimals}f}"


def _not_finite(value: float) -> str:
    return "not a number" if math.isnan(value) else "inf" if value > 0 else "-inf"
