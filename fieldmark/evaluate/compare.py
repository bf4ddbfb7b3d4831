"""Is one run really better than another? Both are judged on the photos that both evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fieldmark.runtime.errors import FieldmarkError

_BLOCK = 4_000_000  # counts held at once while resampling


@dataclass(frozen=True)
class Difference:
    """A score of A, of B, and B - A with its 95% interval."""

    a: float
    b: float
    difference: float
    ci95: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b, "difference": self.difference, "ci95": list(self.ci95)}


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same ``n`` photos. ``only_a_right``: photos that A had right and B wrong."""

    a: str
    b: str
    n: int
    top1: Difference
    macro_f1: Difference
    only_a_right: int
    only_b_right: int
    p_value: float

    @property
    def better(self) -> str | None:
        """ "a", "b", or None where the photos cannot tell: the interval holds 0, or p is 0.05 or more."""
        low, high = self.top1.ci95
        if self.p_value >= 0.05 or low <= 0 <= high:
            return None
        return "b" if low > 0 else "a"

    @property
    def verdict(self) -> str:
        gap, (low, high), p = self.top1.difference, self.top1.ci95, _p(self.p_value)
        if self.better is None:
            return (
                f"A and B cannot be told apart on {self.n} photos: B - A is {100 * gap:+.1f} points of top-1 "
                f"(95% {100 * low:.1f} to {100 * high:.1f}, {p})"
            )
        if self.better == "a":
            gap, low, high = -gap, -high, -low
        return (
            f"{self.better.upper()} is better by {100 * gap:.1f} points of top-1 "
            f"(95% {100 * low:.1f} to {100 * high:.1f}, {p})"
        )

    def to_dict(self) -> dict[str, Any]:
        told = {key: vars(self)[key] for key in ("a", "b", "n", "only_a_right", "only_b_right", "p_value")}
        scores = {"top1": self.top1.to_dict(), "macro_f1": self.macro_f1.to_dict()}
        return told | scores | {"better": self.better, "verdict": self.verdict}


def compare(run_a: str | Path, run_b: str | Path, n: int = 10_000, seed: int = 0) -> Comparison:
    """Compare two runs: folders that hold ``predictions.parquet``, or such files themselves.

    The intervals are percentiles of ``n`` paired bootstrap resamples of the photos (Efron and Tibshirani,
    1993); the p-value is McNemar's exact one (1947), on the photos that exactly one of the runs had right.

    Raises FieldmarkError where a run has no predictions, they share no photo, or disagree on the truth.
    """
    label, a, b = _shared(_read(run_a), _read(run_b))
    only_a, only_b = int(((a == label) & (b != label)).sum()), int(((b == label) & (a != label)).sum())
    resampled = np.concatenate(list(_resamples(label, a, b, n, seed)))  # [n, 2 scores, 2 runs]
    seen = _scores(np.ones((1, len(label)), np.int64), label, a, b)[0]
    low, high = np.percentile(resampled[:, :, 1] - resampled[:, :, 0], [2.5, 97.5], axis=0)
    top1, macro_f1 = (
        Difference(float(of_a), float(of_b), float(of_b - of_a), (float(low[i]), float(high[i])))
        for i, (of_a, of_b) in enumerate(seen)
    )
    names = str(run_a), str(run_b)
    return Comparison(*names, len(label), top1, macro_f1, only_a, only_b, mcnemar(only_a, only_b))


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value: could the photos that one run alone had right be a fair coin's throws?"""
    throws, fewer = only_a + only_b, min(only_a, only_b)
    ways = total = 1
    for i in range(fewer):
        ways = ways * (throws - i) // (i + 1)
        total += ways
    return min(1.0, 2 * total / 2**throws)


def _resamples(label: np.ndarray, a: np.ndarray, b: np.ndarray, n: int, seed: int) -> Iterator[np.ndarray]:
    """Scores of ``n`` resamples, in blocks. Photos with the same truth and answers are drawn together: the
    resample of N photos is then one multinomial draw over the few kinds of photo, exactly."""
    kinds, counts = np.unique(np.stack([label, a, b], axis=1), axis=0, return_counts=True)
    rng, step = np.random.default_rng(seed), max(1, _BLOCK // len(kinds))
    for start in range(0, n, step):
        weights = rng.multinomial(counts.sum(), counts / counts.sum(), size=min(step, n - start))
        yield _scores(weights, *kinds.T)


def _scores(weights: np.ndarray, label: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Top-1 and macro F1 of A and B [B, 2, 2] under photo counts ``weights`` [B, K]."""
    classes = 1 + max(part.max() for part in (label, a, b))
    total, true = weights.sum(1), _by_class(weights, label, classes)
    answer = np.empty((len(weights), 2, 2))
    for run, called in enumerate((a, b)):
        right = called == label
        hits = _by_class(weights[:, right], label[right], classes)
        either = true + _by_class(weights, called, classes)
        f1 = np.divide(2 * hits, either, out=np.zeros(hits.shape), where=either > 0)
        answer[:, 0, run] = weights[:, right].sum(1) / total
        answer[:, 1, run] = f1.sum(1) / (either > 0).sum(1)
    return answer


def _by_class(weights: np.ndarray, of: np.ndarray, classes: int) -> np.ndarray:
    """Sum the columns of ``weights`` [B, K] that share a class: [B, classes]."""
    sums = np.zeros((len(weights), classes), np.int64)
    if len(of):
        order = np.argsort(of, kind="stable")
        present, starts = np.unique(of[order], return_index=True)
        sums[:, present] = np.add.reduceat(weights[:, order], starts, axis=1)
    return sums


def _read(run: str | Path) -> pa.Table:
    """path, label, predicted and, where known, hash."""
    given = Path(run)
    places = (
        [given / "predictions.parquet", given.parent / "predictions.parquet"] if given.is_dir() else [given]
    )
    for place in places:
        if place.is_file():
            try:
                table = pq.read_table(place)
            except (pa.ArrowInvalid, OSError):
                raise FieldmarkError(f"{place}: not a Parquet file of predictions") from None
            missing = {"path", "label", "predicted"} - set(table.column_names)
            if missing:
                raise FieldmarkError(
                    f"{place}: no column {sorted(missing)[0]!r}; compare reads what evaluate wrote"
                )
            return table
    if given.exists():
        raise FieldmarkError(
            f"{given}: no predictions.parquet in it; run `fieldmark evaluate` with --out first"
        )
    raise FieldmarkError(f"{given}: no such run")


def _shared(a: pa.Table, b: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class numbers of the truth, A's and B's answers [N] on the shared photos (by hash, else path)."""
    key = "hash" if "hash" in a.column_names and "hash" in b.column_names else "path"
    in_a, in_b = _first_rows(a[key].to_pylist()), _first_rows(b[key].to_pylist())
    pairs = {name: (row, in_b[name]) for name, row in in_a.items() if name in in_b}
    pairs.pop(None, None)  # a photo whose hash is not known
    if not pairs:
        raise FieldmarkError("the two runs share no photo: evaluate both on the same photos, then compare")
    rows_a, rows_b = zip(*pairs.values(), strict=True)
    left, right = a.take(pa.array(rows_a)), b.take(pa.array(rows_b))
    truth, other = left["label"].to_pylist(), right["label"].to_pylist()
    differ = [i for i in range(len(truth)) if truth[i] != other[i]]
    if differ:
        i = differ[0]
        raise FieldmarkError(
            f"the two runs disagree on the true class of {len(differ)} photos: "
            f"{left['path'][i].as_py()} is {truth[i]!r} in one and {other[i]!r} in the other"
        )
    names = np.array([truth, left["predicted"].to_pylist(), right["predicted"].to_pylist()], dtype=object)
    numbers = np.unique(names.astype(str), return_inverse=True)[1].reshape(names.shape)
    return numbers[0], numbers[1], numbers[2]


def _first_rows(names: list[str | None]) -> dict[str | None, int]:
    rows: dict[str | None, int] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, row)
    return rows


def _p(value: float) -> str:
    return "p<0.001" if value < 0.001 else f"p={value:.3f}" if value < 0.1 else f"p={value:.2f}"
