"""The strongest links of features, kept while blocks of virtual weights stream by.

Letters: n features whose links are kept, k links of each, F features at the other end in a block.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

RESIDUAL = -1
"""What `Links.via_nk` holds for the residual stream."""


@dataclass(frozen=True)
class Links:
    """The strongest links of n features on one side, strongest first. Where there are fewer than k, `others_nk` is -1.

    Attributes:
        others_nk: (n, k) int64, the features at the other end, numbered through all layers.
        via_nk: (n, k) int64, the head that the path passes, layer times H plus head; `RESIDUAL` for none.
        weights_nk: (n, k) float32, virtual weights.
        together_nk: (n, k) int64, at how many positions of the sample both are active; -1 where that is not known.
        expected_nk: (n, k) float32, the expectation over the sample (TWERA); NaN where it is not known.
    """

    others_nk: Tensor
    via_nk: Tensor
    weights_nk: Tensor
    together_nk: Tensor
    expected_nk: Tensor

    @staticmethod
    def none(n: int, k: int) -> Links:
        """Return links of n features that have none yet."""
        return Links(
            torch.full((n, k), -1),
            torch.full((n, k), RESIDUAL),
            torch.zeros(n, k),
            torch.full((n, k), -1),
            torch.full((n, k), torch.nan),
        )

    def __getitem__(self, rows: slice | Tensor) -> Links:
        return Links(*(getattr(self, part.name)[rows] for part in fields(self)))

    @staticmethod
    def joined(parts: list[Links]) -> Links:
        """Return the links of several sets of features one after the other."""
        return Links(*(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(Links)))


class Strongest:
    """The strongest links so far.

    Attributes:
        k: How many are kept of each feature.
        by_expected: Rank by the expectation over the sample rather than by the virtual weight.
    """

    def __init__(self, n: int, k: int, by_expected: bool) -> None:
        self.k, self.by_expected = k, by_expected
        self._links = Links.none(n, k)
        self._scores_nk = torch.full((n, k), -1.0)

    def add(
        self,
        rows: slice | Tensor,
        weights_nf: Tensor,
        first: int,
        via: int = RESIDUAL,
        together_nf: Tensor | None = None,
        expected_nf: Tensor | None = None,
    ) -> None:
        """Add a block.

        Args:
            rows: Which of the features it is of.
            weights_nf: (n, F) virtual weights.
            first: The number of the first feature at the other end; the others follow.
            via: The head.
            together_nf: (n, F) at how many positions both are active, if that is known.
            expected_nf: (n, F) the expectation over the sample, if it is known.
        """
        ranked_nf = expected_nf if self.by_expected else weights_nf
        if ranked_nf is None or not weights_nf.shape[1] or not weights_nf.shape[0]:
            return
        scores, found = ranked_nf.abs().topk(min(self.k, weights_nf.shape[1]), dim=1)
        scores = scores.masked_fill(scores == 0, -1.0).cpu()  # what has no weight is no link
        taken = [found.cpu() + first, torch.full(found.shape, via), weights_nf.gather(1, found).cpu()]
        for known, unknown in ((together_nf, -1), (expected_nf, torch.nan)):
            taken.append(torch.full(found.shape, unknown) if known is None else known.gather(1, found).cpu())
        taken[0] = taken[0].masked_fill(scores < 0, -1)
        before = self._links[rows]
        scores_nx = torch.cat([self._scores_nk[rows], scores], dim=1)
        best, order = scores_nx.topk(self.k, dim=1)  # of equal ones, whichever torch takes
        self._scores_nk[rows] = best
        for part, new in zip(fields(Links), taken, strict=True):
            kept_nk = getattr(self._links, part.name)
            both_nx = torch.cat([getattr(before, part.name), new.to(kept_nk.dtype)], dim=1)
            kept_nk[rows] = both_nx.gather(1, order)

    def links(self) -> Links:
        """Return what is kept, strongest first."""
        return self._links
