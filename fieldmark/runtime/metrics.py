"""Metrics in plain numpy: scores in 0 to 1, labels as class indices.

Shapes: ``probabilities`` [N, C], ``labels`` and ``predicted`` [N] integers in 0..C-1. Every function needs at
least one photo. Where classes tie, the lower index comes first, as in ``argmax``.

Absent classes follow scikit-learn's defaults: a macro mean runs over the classes that occur among the
labels *or* the predictions, with 0 where a ratio is 0/0; balanced accuracy runs over those that occur among
the labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_Z95 = 1.959963984540054  # the normal distribution's 97.5% point


def top_k_accuracy(probabilities: ArrayLike, labels: ArrayLike, k: int = 1) -> float:
    """Share of photos whose class is among the ``k`` most probable ones."""
    p, y = np.asarray(probabilities), np.asarray(labels)
    own = np.take_along_axis(p, y[:, None], axis=1)
    before = (p > own).sum(1) + ((p == own) & (np.arange(p.shape[1]) < y[:, None])).sum(1)
    return float((before < k).mean())


def wilson(right: int, n: int) -> tuple[float, float]:
    """95% interval of a share ``right / n`` (Wilson, JASA 1927); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = right / n, _Z95**2
    middle = share + z2 / (2 * n)
    half = _Z95 * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
    return max(0.0, float(low)) if right else 0.0, min(1.0, float(high)) if right < n else 1.0


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, n_classes: int) -> Ints:
    """Counts [C, C]: rows are true classes, columns predicted ones."""
    pairs = np.asarray(labels, np.int64) * n_classes + np.asarray(predicted, np.int64)
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


@dataclass(frozen=True)
class ClassScores:
    """Per class, arrays of length C: photos ``n``, ``precision``, ``recall``, ``f1`` (0 where 0/0)."""

    n: Ints
    precision: Floats
    recall: Floats
    f1: Floats
    occurs: NDArray[np.bool_]

    def macro(self) -> tuple[float, float, float]:
        """Mean precision, recall and F1 over the classes that occur among labels or predictions."""
        seen = self.occurs
        return (
            float(self.precision[seen].mean()),
            float(self.recall[seen].mean()),
            float(self.f1[seen].mean()),
        )

    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that occur among the labels."""
        return float(self.recall[self.n > 0].mean())


def class_scores(labels: ArrayLike, predicted: ArrayLike, n_classes: int) -> ClassScores:
    """Precision, recall and F1 of every class."""
    y, called_as = np.asarray(labels), np.asarray(predicted)
    n, called = np.bincount(y, minlength=n_classes), np.bincount(called_as, minlength=n_classes)
    right = np.bincount(y[y == called_as], minlength=n_classes)
    return ClassScores(
        n, _ratio(right, called), _ratio(right, n), _ratio(2 * right, n + called), n + called > 0
    )


def nll(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-likelihood in nats (log loss).

    Probabilities are clipped to the machine epsilon of their own type, as scikit-learn does.
    """
    p = np.asarray(probabilities)
    eps = np.finfo(p.dtype).eps
    own = p[np.arange(len(p)), np.asarray(labels)]
    return float(-np.log(np.clip(own, eps, 1 - eps), dtype=np.float64).mean())


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Brier score in its first form (Brier, 1950): squared error summed over classes, 0 to 2."""
    p = np.asarray(probabilities, np.float64)
    own = p[np.arange(len(p)), np.asarray(labels)]
    return float(((p**2).sum(1) - own**2 + (1 - own) ** 2).mean())


@dataclass(frozen=True)
class Reliability:
    """Per bin of top-label confidence, arrays of length ``bins``; NaN in empty bins."""

    count: Ints
    confidence: Floats
    accuracy: Floats

    @property
    def ece(self) -> float:
        filled = self.count > 0
        gap = np.abs(self.confidence - self.accuracy)[filled]
        return float((gap * self.count[filled]).sum() / self.count.sum())


def reliability(scores: ArrayLike, correct: ArrayLike, bins: int = 15) -> Reliability:
    """Confidence and accuracy in equal-width bins [low, high) of the top-label score (the last holds 1)."""
    s, right = np.asarray(scores, np.float64), np.asarray(correct, np.float64)
    place = np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), s, side="right") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            count,
            np.bincount(place, weights=s, minlength=bins) / count,
            np.bincount(place, weights=right, minlength=bins) / count,
        )


def ece(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error of the top label (Guo et al., ICML 2017), equal-width bins."""
    p = np.asarray(probabilities)
    return reliability(p.max(1), p.argmax(1) == np.asarray(labels), bins).ece


# Retrieval. ``matches`` [Q, K]: is the k-th nearest photo of the query's class? Best first.


def recall_at_k(matches: ArrayLike, k: int) -> float:
    """Share of queries with at least one photo of their class among the ``k`` nearest."""
    return float(np.asarray(matches)[:, :k].any(1).mean())


def average_precision_at_r(matches: ArrayLike, relevant: ArrayLike) -> Floats:
    """AP@R of every query [Q]: mean over ranks 1..R of precision where the rank holds a match, else 0.

    R = ``relevant`` [Q] is how many photos of the query's class the gallery has; ``matches`` must hold at
    least max(R) columns. Musgrave, Belongie, Lim: A Metric Learning Reality Check (ECCV 2020), eq. 1.
    """
    hit, r = np.asarray(matches, np.float64), np.asarray(relevant)
    rank = np.arange(1, hit.shape[1] + 1)
    precision = np.where(rank <= r[:, None], hit * hit.cumsum(1) / rank, 0.0)
    return _ratio(precision.sum(1), r)


def average_precision(matches: ArrayLike) -> Floats:
    """Average precision of every query [Q] over its whole ranking (0 where nothing matches)."""
    hit = np.asarray(matches, np.float64)
    precision = hit * hit.cumsum(1) / np.arange(1, hit.shape[1] + 1)
    return _ratio(precision.sum(1), hit.sum(1))


@dataclass(frozen=True)
class Roc:
    """Same-or-different at every threshold, from the strictest down; starts at (0, 0).

    ``far``: share of different pairs called same; ``tar``: share of same pairs called same.
    """

    far: Floats
    tar: Floats

    @property
    def auc(self) -> float:
        return float(np.trapezoid(self.tar, self.far))

    def tar_at(self, far: float) -> float:
        """The best true accept rate among thresholds whose false accept rate is at most ``far``."""
        return float(self.tar[np.searchsorted(self.far, far, side="right") - 1])


def roc_from_counts(same: ArrayLike, different: ArrayLike) -> Roc:
    """ROC from how many same and different pairs lie at each score, scores rising (ties share a place)."""
    accepted_same = np.cumsum(np.asarray(same)[::-1], dtype=np.float64)
    accepted_different = np.cumsum(np.asarray(different)[::-1], dtype=np.float64)
    if accepted_same[-1] == 0 or accepted_different[-1] == 0:
        raise ValueError("a ROC curve needs at least one same and one different pair")
    far = np.concatenate([[0.0], accepted_different / accepted_different[-1]])
    tar = np.concatenate([[0.0], accepted_same / accepted_same[-1]])
    return Roc(far, tar)


def roc(scores: ArrayLike, same: ArrayLike) -> Roc:
    """ROC of pair ``scores`` [P] (higher = more alike) against ``same`` [P] (bool)."""
    is_same = np.asarray(same, bool)
    values, place = np.unique(np.asarray(scores), return_inverse=True)
    n = len(values)
    return roc_from_counts(
        np.bincount(place[is_same], minlength=n), np.bincount(place[~is_same], minlength=n)
    )


def _ratio(over: ArrayLike, under: ArrayLike) -> Floats:
    a, b = np.asarray(over, np.float64), np.asarray(under, np.float64)
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b != 0)
