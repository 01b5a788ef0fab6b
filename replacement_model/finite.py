"""NaN and infinity among weights, found in one pass at the speed of memory."""

from __future__ import annotations

from torch import Tensor


def not_finite(tensor: Tensor) -> str | None:
    """Return `"NaN"` or `"infinity"` if a tensor holds one, else None.

    Example:
        >>> not_finite(torch.tensor([1.0, float("inf")]))
        'infinity'
    """
    if not tensor.numel():
        return None
    low, high = tensor.aminmax()  # which pass NaN on
    if low.isfinite() and high.isfinite():
        return None
    return "NaN" if low.isnan() or high.isnan() else "infinity"
