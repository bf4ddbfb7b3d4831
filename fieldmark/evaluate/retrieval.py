"""Nearest photos by embedding, and how well they find their own class, also on classes never trained on.

Cosine similarity throughout. Memory is bounded: a block of the comparison at a time, however many photos.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldmark.runtime import metrics
from fieldmark.runtime.errors import FieldmarkError

_BLOCK = 4_000_000  # similarities held at once (float32: 16 MB)
_STEP = 8192  # gallery rows multiplied at once
_BINS = 1 << 16  # of similarity in -1..1, for the ROC: 3e-5 wide

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def similar(query: ArrayLike, gallery: ArrayLike, k: int = 10) -> tuple[Ints, Floats]:
    """The ``k`` nearest gallery photos of every query: indices and cosines [Q, k], nearest first.

    ``query`` [Q, D], ``gallery`` [N, D], of any length and float type; k is at most N. Equal cosines come in
    the gallery's order.
    """
    q, g = np.asarray(query), np.asarray(gallery)
    if q.ndim != 2 or g.ndim != 2 or q.shape[1] != g.shape[1]:
        raise ValueError(f"query {q.shape} and gallery {g.shape} are not [Q, D] and [N, D]")
    k = min(k, len(g))
    index, score = np.empty((len(q), k), np.int64), np.empty((len(q), k), np.float32)
    for rows, cosines in _cosines(q, g):
        index[rows], score[rows] = _best(cosines, k)
    return index, score


@dataclass(frozen=True)
class RetrievalReport:
    """Every photo searched among all others. Shares in 0 to 1.

    ``recall_at`` {1, 2, 4, 8: share of photos with one of their class among the nearest}, ``map_at_r``
    (Musgrave et al., 2020), ``roc_auc`` and ``tar_at_far`` {0.1, 0.01, 0.001} of same-or-different over all
    pairs. Photos alone in their class ask no question (``n_queries`` leaves them out), but may be found.
    """

    n: int
    n_classes: int
    n_queries: int
    recall_at: dict[int, float]
    map_at_r: float
    roc_auc: float
    tar_at_far: dict[float, float]

    def to_dict(self) -> dict[str, Any]:
        told = asdict(self)
        for key in ("recall_at", "tar_at_far"):
            told[key] = {str(at): value for at, value in told[key].items()}
        return told


def retrieval_report(
    embeddings: ArrayLike,
    labels: Sequence[str] | ArrayLike,
    ks: Sequence[int] = (1, 2, 4, 8),
    fars: Sequence[float] = (1e-1, 1e-2, 1e-3),
) -> RetrievalReport:
    """Judge ``embeddings`` [N, D] by whether photos of one class lie together; ``labels`` [N] of any kind.

    Raises FieldmarkError where no class has two photos, or there is one class only.
    """
    x = np.asarray(embeddings)
    names, y, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if len(names) < 2 or sizes.max() < 2:
        raise FieldmarkError("retrieval needs at least two classes, and one with at least two photos")
    others = sizes[y] - 1  # photos of its class that a query can find
    depth = min(len(x) - 1, max(*ks, others.max()))
    asked = others > 0
    match, precision = np.zeros((len(x), max(ks)), bool), np.zeros(len(x))
    same, pairs = np.zeros(_BINS, np.int64), np.zeros(_BINS, np.int64)
    for rows, cosines in _cosines(x, x):
        own = np.arange(rows.start, rows.stop)
        cosines[np.arange(len(own)), own] = -np.inf
        nearest, _ = _best(cosines, depth)
        found = y[nearest] == y[own, None]
        match[rows, :depth] = found[:, : max(ks)]
        precision[rows] = metrics.average_precision_at_r(found, others[own])
        later = np.arange(rows.start, len(x)) > own[:, None]  # every pair once
        place = _bins(cosines[:, rows.start :][later])
        pairs += np.bincount(place, minlength=_BINS)
        same += np.bincount(place[(y[rows.start :] == y[own, None])[later]], minlength=_BINS)
    curve = metrics.roc_from_counts(same, pairs - same)
    return RetrievalReport(
        n=len(x),
        n_classes=len(names),
        n_queries=int(asked.sum()),
        recall_at={k: metrics.recall_at_k(match[asked], k) for k in ks},
        map_at_r=float(precision[asked].mean()),
        roc_auc=curve.auc,
        tar_at_far={far: curve.tar_at(far) for far in fars},
    )


def _cosines(query: np.ndarray, gallery: np.ndarray) -> Iterator[tuple[slice, Floats]]:
    """Blocks of queries, each with its cosines [block, N]; a vector of zeros is like nothing (0)."""
    size = max(1, _BLOCK // max(1, len(gallery)))
    for start in range(0, len(query), size):
        rows = slice(start, min(start + size, len(query)))
        q = _unit(query[rows])
        block = np.empty((len(q), len(gallery)), np.float32)
        for step in range(0, len(gallery), _STEP):
            np.matmul(q, _unit(gallery[step : step + _STEP]).T, out=block[:, step : step + _STEP])
        yield rows, block


def _unit(x: np.ndarray) -> Floats:
    x = x.astype(np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _best(cosines: Floats, k: int) -> tuple[Ints, Floats]:
    """The k highest of every row [B, k], highest first; equal ones in order of their index."""
    if k < cosines.shape[1]:
        index = np.sort(np.argpartition(-cosines, k - 1, axis=1)[:, :k], axis=1)
    else:
        index = np.broadcast_to(np.arange(k), (len(cosines), k))
    score = np.take_along_axis(cosines, index, axis=1)
    order = np.argsort(-score, axis=1, kind="stable")
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(score, order, axis=1)


def _bins(cosines: Floats) -> Ints:
    return np.clip((cosines + 1) * (_BINS / 2), 0, _BINS - 1).astype(np.int64)
