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
    """Two runs on the same ``n`` photos. ``only_a_right``: photos that A had right and B wrong; ``only_in_a``:
    photos that A alone evaluated; ``copies``: further rows of a photo, which counts once."""

    a: str
    b: str
    n: int
    top1: Difference
    macro_f1: Difference
    only_a_right: int
    only_b_right: int
    p_value: float
    only_in_a: int
    only_in_b: int
    copies: int

    @property
    def better(self) -> str | None:
        """ "a", "b", or None where the photos cannot tell: the interval holds 0, or p is 0.05 or more."""
        low, high = self.top1.ci95
        if self.p_value >= 0.05 or low <= 0 <= high:
            return None
        return "b" if low > 0 else "a"

    @property
    def photos(self) -> str:
        """Which photos the numbers are of."""
        return f"{self.n} shared photos; {self.only_in_a} only in A, {self.only_in_b} only in B, {self.copies} copies"

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
        told = {key: value for key, value in vars(self).items() if not isinstance(value, Difference)}
        scores = {"top1": self.top1.to_dict(), "macro_f1": self.macro_f1.to_dict()}
        return told | scores | {"better": self.better, "verdict": self.verdict}


def compare(run_a: str | Path, run_b: str | Path, n: int = 10_000, seed: int = 0) -> Comparison:
    """Compare two runs: folders that hold ``predictions.parquet``, or such files themselves.

    The intervals are percentiles of ``n`` paired bootstrap resamples of the photos (Efron and Tibshirani,
    1993); the p-value is McNemar's exact one (1947), on the photos that exactly one of the runs had right.

    Raises FieldmarkError where a run has no predictions, they share no photo, or disagree on the truth.
    """
    (label, a, b), left_out = _shared(_read(run_a), _read(run_b))
    only_a, only_b = int(((a == label) & (b != label)).sum()), int(((b == label) & (a != label)).sum())
    resampled = np.concatenate(list(_resamples(label, a, b, n, seed)))  # [n, 2 scores, 2 runs]
    seen = _scores(np.ones((1, len(label)), np.int64), label, a, b)[0]
    low, high = np.percentile(resampled[:, :, 1] - resampled[:, :, 0], [2.5, 97.5], axis=0)
    top1, macro_f1 = (
        Difference(float(of_a), float(of_b), float(of_b - of_a), (float(low[i]), float(high[i])))
        for i, (of_a, of_b) in enumerate(seen)
    )
    names = str(run_a), str(run_b)
    return Comparison(*names, len(label), top1, macro_f1, only_a, only_b, mcnemar(only_a, only_b), *left_out)


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


def _shared(a: pa.Table, b: pa.Table) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Class numbers of the truth, A's and B's answers [3, N] on the shared photos (by hash, else path); and how many
    photos A alone has, and B alone, and how many rows are further copies of a photo."""
    by_hash = "hash" in a.column_names and "hash" in b.column_names
    in_a, in_b = _rows(a, by_hash), _rows(b, by_hash)
    pairs = [_pair(rows, in_b[name]) for name, rows in in_a.items() if name in in_b]
    if not pairs:
        raise FieldmarkError("the two runs share no photo: evaluate both on the same photos, then compare")
    copies = sum(max(len(run.get(name, ())) for run in (in_a, in_b)) - 1 for name in in_a | in_b)
    left_out = len(in_a) - len(pairs), len(in_b) - len(pairs), copies
    rows_a, rows_b = zip(*pairs, strict=True)
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
    return numbers, left_out


def _rows(table: pa.Table, by_hash: bool) -> dict[str, list[tuple[str, int]]]:
    """Path and row of every photo and of its copies, by its hash, else its path."""
    paths = table["path"].to_pylist()
    names = table["hash"].to_pylist() if by_hash else paths
    rows: dict[str, list[tuple[str, int]]] = {}
    for row, (name, path) in enumerate(zip(names, paths, strict=True)):
        rows.setdefault(name or path, []).append((path, row))
    return rows


def _pair(in_a: list[tuple[str, int]], in_b: list[tuple[str, int]]) -> tuple[int, int]:
    """A photo's row in A and in B: of one path where both have it (copies may have other labels), else the first."""
    there = dict(reversed(in_b))
    return next(((row, there[path]) for path, row in in_a if path in there), (in_a[0][1], in_b[0][1]))


def _p(value: float) -> str:
    return "p<0.001" if value < 0.001 else f"p={value:.3f}" if value < 0.1 else f"p={value:.2f}"
