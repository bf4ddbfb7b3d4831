"""Which classes are taken for each other, and in which order a matrix shows them best.

``counts`` [K, K] are photos, true classes in rows; ``totals`` [K] the photos of each true class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fieldmark.runtime import metrics
from fieldmark.runtime.results import Evaluation


@dataclass(frozen=True)
class Confusions:
    """``names`` [K], ``counts`` [K, K] and ``totals`` [K] of the classes that a page shows."""

    names: list[str]
    counts: np.ndarray
    totals: np.ndarray

    def take(self, order: list[int]) -> Confusions:
        names = [self.names[c] for c in order]
        return Confusions(names, self.counts[np.ix_(order, order)], self.totals[order])


@dataclass(frozen=True)
class Pair:
    """Two classes: ``a_as_b`` of the ``n_a`` photos of A were called B, and the reverse."""

    a: str
    b: str
    a_as_b: int
    b_as_a: int
    n_a: int
    n_b: int


def confusions(evaluation: Evaluation, limit: int) -> Confusions:
    """The classes that occur, at most ``limit``: those with the most mistakes, in the model's order."""
    index = {name: i for i, name in enumerate(evaluation.per_class)}
    true, called = (
        np.array([index[name] for name in evaluation.predictions[column].to_pylist()])
        for column in ("label", "predicted")
    )
    wrong = true != called
    mistakes = np.bincount(np.concatenate([true[wrong], called[wrong]]), minlength=len(index))
    kept = np.sort(np.argsort(-mistakes, kind="stable")[:limit])
    place = np.full(len(index), -1)
    place[kept] = np.arange(len(kept))
    inside = (place[true] >= 0) & (place[called] >= 0)
    counts = metrics.confusion_matrix(place[true[inside]], place[called[inside]], len(kept))
    names = [name for name, at in zip(index, place, strict=True) if at >= 0]
    return Confusions(names, counts, np.bincount(true, minlength=len(index))[kept])


def confused_pairs(of: Confusions, limit: int) -> list[Pair]:
    """The ``limit`` pairs with the most photos of one called the other, both ways together."""
    both = np.triu(of.counts + of.counts.T, 1)
    rows, columns = np.nonzero(both)
    order = np.lexsort((columns, rows, -both[rows, columns]))[:limit]
    pairs = []
    for a, b in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if of.counts[a, b] < of.counts[b, a]:
            a, b = b, a
        astray, back = int(of.counts[a, b]), int(of.counts[b, a])
        pairs.append(Pair(of.names[a], of.names[b], astray, back, int(of.totals[a]), int(of.totals[b])))
    return pairs


def similar_order(of: Confusions) -> list[int]:
    """An order of the classes that lays confusable ones side by side.

    Average linkage (Sokal and Michener, 1958) on the share of photos that go astray between two classes.
    Where two rows of classes are joined, each is turned so that the classes at the seam are most similar.
    """
    share = of.counts / np.maximum(of.totals, 1)[:, None]
    near = share + share.T
    np.fill_diagonal(near, 0)
    rows = {c: [c] for c in range(len(near))}
    link = near.copy()  # mean similarity of two rows of classes, kept at the index of one of each
    best = link.max(1)
    while best.max() > 0:
        i = int(best.argmax())
        j = int(link[i].argmax())
        touched = (link[i] > 0) | (link[j] > 0)
        left, right = rows[i], rows.pop(j)
        rows[i] = _joined(left, right, near)
        link[i] = (len(left) * link[i] + len(right) * link[j]) / (len(left) + len(right))
        link[:, i] = link[i]
        link[j] = link[:, j] = link[i, i] = 0
        best[touched] = link[touched].max(1)
    return [c for row in sorted(rows.values(), key=len, reverse=True) for c in row]


def _joined(left: list[int], right: list[int], near: np.ndarray) -> list[int]:
    """Two rows as one; near the seam similarity counts the more, the closer two classes would lie."""

    def seam(turned: tuple[list[int], list[int]]) -> float:
        a, b = turned[0][::-1][:4], turned[1][:4]
        distance = 1 + np.arange(len(a))[:, None] + np.arange(len(b))
        return float((near[np.ix_(a, b)] / distance).sum())

    a, b = max(((a, b) for a in (left, left[::-1]) for b in (right, right[::-1])), key=seam)
    return a + b


def most_confused(of: Confusions, limit: int) -> list[int]:
    """At most ``limit`` classes, those of the most confused pairs, in the order of ``of``."""
    chosen: set[str] = set()
    for pair in confused_pairs(of, limit * 4):
        if len(chosen | {pair.a, pair.b}) <= limit:
            chosen |= {pair.a, pair.b}
    return [i for i, name in enumerate(of.names) if name in chosen]
