"""Statistics of a layer over a stream of tokens, in memory that does not grow with it.

Letters: X tokens of a batch, D the width of the site, F features of the layer, n active features of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A feature that fires on a larger share of the tokens is frequent.
FREQUENT = 0.1


class LayerStatistics:
    """What one layer's site is, what its reconstruction misses, and how often its features fire.

    Sums are float64. Means and squared deviations are joined batch by batch (Chan et al. 1983, "Algorithms for Computing
    the Sample Variance", equation 2.1), so that sites far from zero lose no digits.

    Attributes:
        n_tokens: The number of tokens so far.
    """

    def __init__(self, n_features: int, width: int, device: torch.device) -> None:
        # A device without float64 (Apple's) sends its sums to the CPU.
        place = torch.device("cpu") if device.type == "mps" else device
        self.n_tokens = 0
        self._mean_d = torch.zeros(width, dtype=torch.float64, device=place)
        self._deviation_d = torch.zeros(width, dtype=torch.float64, device=place)
        self._missed_d = torch.zeros(width, dtype=torch.float64, device=place)
        self._fired_f = torch.zeros(n_features, dtype=torch.int64, device=place)

    def add(self, site_xd: Tensor, reconstruction_xd: Tensor, features_n: Tensor) -> None:
        """Add a batch.

        Args:
            site_xd: (X, D) what the model has at the site.
            reconstruction_xd: (X, D) what the dictionary puts in its place.
            features_n: (n,) int64 the features that fire, as often as they do.
        """
        place, n_new = self._mean_d.device, len(site_xd)
        if not n_new:
            return
        site_xd = site_xd.to(place, torch.float64)
        self._missed_d += (reconstruction_xd.to(place, torch.float64) - site_xd).square_().sum(0)
        mean_d = site_xd.mean(0)
        apart_d = mean_d - self._mean_d
        n_all = self.n_tokens + n_new
        self._deviation_d += (site_xd - mean_d).square_().sum(0) + apart_d.square() * (self.n_tokens * n_new / n_all)
        self._mean_d += apart_d * (n_new / n_all)
        self._fired_f += torch.bincount(features_n.to(place), minlength=len(self._fired_f))
        self.n_tokens = n_all

    @property
    def fvu(self) -> float:
        """Σ‖y − ŷ‖² / Σ‖y − mean y‖² over tokens, the fraction of variance unexplained."""
        return _ratio(self._missed_d.sum(), self._deviation_d.sum())

    @property
    def fvu_weighted(self) -> float:
        """The same with each dimension of y and ŷ divided by the square root of its standard deviation.

        With `e` the mean squared error and `σ` the standard deviation of a dimension: `Σ e/σ / Σ σ`, summed over the
        dimensions that vary. A few dimensions of large variance, which are most of the raw figure in early layers of
        Gemma 3, count here by their standard deviation instead of their variance.
        """
        varies_d = self._deviation_d > 0
        deviation_d = (self._deviation_d[varies_d] / max(self.n_tokens, 1)).sqrt()
        missed_d = self._missed_d[varies_d] / max(self.n_tokens, 1)
        return _ratio((missed_d / deviation_d).sum(), deviation_d.sum())

    @property
    def l0(self) -> float:
        """How many features fire at a token, on average."""
        return self._fired_f.sum().item() / max(self.n_tokens, 1)

    @property
    def dead(self) -> float:
        """The share of the features that never fire."""
        return (self._fired_f == 0).double().mean().item()

    @property
    def frequent(self) -> float:
        """The share of the features that fire on more than a tenth of the tokens."""
        return (self._fired_f > FREQUENT * self.n_tokens).double().mean().item()


def _ratio(part: Tensor, whole: Tensor) -> float:
    """A share of nothing is not a number."""
    return (part / whole).item()
