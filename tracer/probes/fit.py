"""Logistic read-outs with scikit-learn: fitted on groups, tested on others, beside what could do as well without latents.

The sparse probe is a logistic regression with an L1 penalty whose strength is chosen by cross-validation within the
training groups (Gurnee et al. 2023, "Finding Neurons in a Haystack"; Kantamneni et al. 2025, "Are Sparse Autoencoders
Useful?", which compares with probes on raw activations and finds that those are hard to beat).

Letters: E texts, T those tested, C columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
import scipy.stats
from numpy.typing import NDArray

Matrix: TypeAlias = Any
"""(E, C) float32: a NumPy array, or a sparse array of scipy, which has no types."""
Flags = NDArray[np.bool_]
# Inverse strengths of the penalty that cross-validation chooses from.
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_FOLDS, _HELD_OUT_FOLDS = 4, 3
_RESAMPLES, _MOST_STEPS = 1000, 2000


@dataclass(frozen=True)
class Fitted:
    """A fitted read-out: the score of a row x is `x · weights_c + bias`.

    Attributes:
        weights_c: (C,) float64.
        bias: The constant.
        strength: The inverse strength of the penalty that was chosen.
    """

    weights_c: NDArray[np.float64]
    bias: float
    strength: float

    def scores(self, rows: Matrix) -> NDArray[np.float64]:
        """Return the score of each row, in nats: above 0 it has the property more likely than not."""
        return np.asarray(rows @ self.weights_c, dtype=np.float64) + self.bias


@dataclass(frozen=True)
class Auroc:
    """An area under the ROC curve on held-out texts: the chance that one with the property scores above one without.

    Attributes:
        value: The area.
        low: The lower end of the 95 % interval, by bootstrap over held-out groups.
        high: Its upper end.
    """

    value: float
    low: float
    high: float


def scikit_learn() -> Any:
    """Return the module `sklearn` with what is used of it.

    Raises:
        ValueError: It is not installed; the line says how to install it.
    """
    try:
        import sklearn.linear_model
        import sklearn.metrics
        import sklearn.model_selection
    except ImportError:
        raise ValueError("probes need scikit-learn, which is not installed; pip install 'crosstrace[probe]'") from None
    return sklearn


def held_out(labels_e: Flags, groups_e: NDArray[np.int64], seed: int) -> Flags:
    """Return which texts are held out: about a third, whole groups, with about the share of each label.

    Raises:
        ValueError: There are too few groups of a label to train and test on.
    """
    for name, label in (("positive", True), ("negative", False)):
        n_groups = len(np.unique(groups_e[labels_e == label]))
        if n_groups < 2 * _HELD_OUT_FOLDS:
            raise ValueError(
                f"{n_groups} {name} groups of texts are too few to train and test on; at least {2 * _HELD_OUT_FOLDS}"
            )
    folds = scikit_learn().model_selection.StratifiedGroupKFold(_HELD_OUT_FOLDS, shuffle=True, random_state=seed)
    _, tested = next(iter(folds.split(np.zeros(len(labels_e)), labels_e, groups_e)))
    flags = np.zeros(len(labels_e), dtype=np.bool_)
    flags[tested] = True
    return flags


def fit(rows: Matrix, labels_e: Flags, groups_e: NDArray[np.int64], sparse: bool, seed: int) -> Fitted:
    """Fit a logistic read-out; the strength of its penalty is chosen by cross-validation over groups.

    Columns are scaled to a largest absolute value of 1 if `sparse`, else to mean 0 and standard deviation 1; the weights
    returned are for rows as they are.

    Args:
        rows: (E, C).
        labels_e: (E,).
        groups_e: (E,) which texts belong together.
        sparse: L1, for few columns; otherwise L2, for dense ones.
        seed: Of the folds and the solver.
    """
    learn = scikit_learn()
    if sparse:
        centre_c: Any = 0.0
        peak_c: Any = abs(rows).max(axis=0)
        scale_c = np.asarray(peak_c.todense() if scipy.sparse.issparse(peak_c) else peak_c, dtype=np.float64).ravel()
    else:
        centre_c, scale_c = rows.mean(axis=0).astype(np.float64), rows.std(axis=0).astype(np.float64)
    used_c = np.flatnonzero(scale_c > 1e-12 * scale_c.max(initial=0.0))
    scale_c = scale_c[used_c]
    if sparse:
        scaled = scipy.sparse.csr_matrix(rows[:, used_c] @ scipy.sparse.diags_array(1 / scale_c))
        # liblinear takes no wider indices.
        scaled.indices, scaled.indptr = scaled.indices.astype(np.int32), scaled.indptr.astype(np.int32)
    else:
        centre_c = centre_c[used_c]
        scaled = (rows[:, used_c] - centre_c) / scale_c

    def regression(strength: float) -> Any:
        return learn.linear_model.LogisticRegression(
            C=strength,
            l1_ratio=1.0 if sparse else 0.0,
            solver="liblinear" if sparse else "lbfgs",
            class_weight="balanced",
            random_state=seed,
            max_iter=_MOST_STEPS,
        )

    strength = _best_strength(scaled, labels_e, groups_e, regression, seed)
    fitted = regression(strength).fit(scaled, labels_e)
    weights_c = np.zeros(rows.shape[1])
    weights_c[used_c] = fitted.coef_[0] / scale_c
    bias = float(fitted.intercept_[0])
    if not sparse:
        bias -= float(centre_c @ weights_c[used_c])
    return Fitted(weights_c, bias, strength)


def _best_strength(
    scaled: Any, labels_e: Flags, groups_e: NDArray[np.int64], regression: Callable[[float], Any], seed: int
) -> float:
    """The strength with the best cross-validated AUROC; of equals the strongest penalty, which keeps the fewest columns."""
    learn = scikit_learn()
    n_groups = min(len(np.unique(groups_e[labels_e == label])) for label in (True, False))
    folds = learn.model_selection.StratifiedGroupKFold(min(_FOLDS, n_groups), shuffle=True, random_state=seed)
    splits = [
        (trained, tested)
        for trained, tested in folds.split(np.zeros(len(labels_e)), labels_e, groups_e)
        if len(set(labels_e[trained])) == len(set(labels_e[tested])) == 2
    ]
    means = []
    for strength in STRENGTHS:
        found = []
        for trained, tested in splits:
            fitted = regression(strength).fit(scaled[trained], labels_e[trained])
            found.append(area(fitted.decision_function(scaled[tested]), labels_e[tested]))
        means.append(round(float(np.mean(found)), 4) if found else 0.0)
    return STRENGTHS[int(np.argmax(means))]


def area(scores_t: NDArray[np.float64], labels_t: Flags) -> float:
    """Return the area under the ROC curve; ties count half (Hanley and McNeil 1982)."""
    ranks_t = scipy.stats.rankdata(scores_t)
    positive = int(labels_t.sum())
    negative = len(labels_t) - positive
    return float((ranks_t[labels_t].sum() - positive * (positive + 1) / 2) / (positive * negative))


def with_interval(scores_t: NDArray[np.float64], labels_t: Flags, groups_t: NDArray[np.int64], seed: int) -> Auroc:
    """Return the AUROC with its bootstrap interval (Efron 1979): groups are drawn with replacement, texts with their group."""
    low, high = np.quantile(_resampled([scores_t], labels_t, groups_t, seed)[0], [0.025, 0.975])
    return Auroc(area(scores_t, labels_t), float(low), float(high))


def behind(
    scores_t: NDArray[np.float64], other_t: NDArray[np.float64], labels_t: Flags, groups_t: NDArray[np.int64], seed: int
) -> float:
    """Return the lower end of the 95 % interval of by how much the AUROC of `scores_t` is above that of `other_t`.

    Both are resampled together. It is 0 or less where the other does as well, as far as these texts can tell.
    """
    one, other = _resampled([scores_t, other_t], labels_t, groups_t, seed)
    return float(np.quantile(one - other, 0.025))


def _resampled(
    scores: list[NDArray[np.float64]], labels_t: Flags, groups_t: NDArray[np.int64], seed: int
) -> list[NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    distinct, member_t = np.unique(groups_t, return_inverse=True)
    members = [np.flatnonzero(member_t == number) for number in range(len(distinct))]
    found: list[list[float]] = [[] for _ in scores]
    while len(found[0]) < _RESAMPLES:
        drawn = np.concatenate([members[number] for number in generator.integers(0, len(members), len(members))])
        if 0 < labels_t[drawn].sum() < len(drawn):
            for values, scores_t in zip(found, scores, strict=True):
                values.append(area(scores_t[drawn], labels_t[drawn]))
    return [np.array(values) for values in found]
