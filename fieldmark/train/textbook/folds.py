"""Options chosen by k-fold cross-validation: every candidate is trained k times and scored on what was left out.

It knows nothing of networks: a callable trains and scores. So it serves any options, the textbook CNN's first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from fieldmark.data.split import folds as deal
from fieldmark.runtime.errors import FieldmarkError, UsageError

T = TypeVar("T")
Model = TypeVar("Model", bound=Any)


@dataclass(frozen=True)
class Candidate(Generic[T]):
    """One candidate's scores, a fold each; NaN where training failed to give a number."""

    options: T
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the folds; NaN if one of them is."""
        return float(np.mean(self.scores))

    @property
    def spread(self) -> float:
        """Standard deviation over the folds (with k - 1); what a fold's luck is worth."""
        return float(np.std(self.scores, ddof=1))


@dataclass(frozen=True)
class Choice(Generic[T]):
    """rows: the candidates, best mean first (equals in the order given, those without a mean last)."""

    rows: tuple[Candidate[T], ...]

    @property
    def best(self) -> T:
        """The options with the highest mean."""
        return self.rows[0].options

    @property
    def close(self) -> tuple[T, ...]:
        """Options that the folds cannot tell from the best: their paired difference is within one standard error.

        A difference is taken fold by fold, since the folds are the same for all.
        """
        first = np.array(self.rows[0].scores)
        near = []
        for row in self.rows:
            difference = first - np.array(row.scores)
            error = difference.std(ddof=1) / math.sqrt(len(difference))
            if difference.mean() <= error:
                near.append(row.options)
        return tuple(near)

    def table(self) -> list[dict[str, Any]]:
        """One mapping a candidate: options, mean, spread, scores; in the order of ``rows``."""
        return [
            {"options": row.options, "mean": row.mean, "spread": row.spread, "scores": list(row.scores)}
            for row in self.rows
        ]


def choose(
    grid: Iterable[T],
    score: Callable[[T, np.ndarray, np.ndarray], float],
    y: np.ndarray,
    groups: np.ndarray | None = None,
    folds: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Choice[T]:
    """Score every candidate of ``grid`` on the same folds.

    ``score(options, train_rows, val_rows)`` trains on the first rows and gives a number for the others,
    higher is better (NaN: it failed; such a candidate is never chosen). y: labels [N]; groups [N]: photos that
    stay in one fold. Fold by fold, all candidates in turn, so a run that is cut off has compared fairly.
    Candidates that are equal count once. Raises UsageError for an empty grid, fewer than two folds, or rows
    that cannot fill them, FieldmarkError where no candidate got a score.
    """
    candidates: list[T] = []
    for one in grid:
        if one not in candidates:
            candidates.append(one)
    y = np.asarray(y)
    if not candidates:
        raise UsageError("nothing to choose from: the grid is empty")
    if folds < 2:
        raise UsageError(f"folds is {folds}: at least 2 are needed")
    fold = deal(y, groups, folds, seed)
    if (np.bincount(fold, minlength=folds) == 0).any():
        raise UsageError(f"{len(y)} photos do not fill {folds} folds: take fewer")
    scores = np.full((len(candidates), folds), np.nan)
    for number in range(folds):
        train, val = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        for row, options in enumerate(candidates):
            scores[row, number] = score(options, train, val)
            if progress:
                progress(number * len(candidates) + row + 1, scores.size)
    rows = [Candidate(one, tuple(values)) for one, values in zip(candidates, scores.tolist(), strict=True)]
    rows.sort(key=lambda row: -math.inf if math.isnan(row.mean) else row.mean, reverse=True)
    if math.isnan(rows[0].mean):
        raise FieldmarkError("none of the candidates got a score: every training failed")
    return Choice(tuple(rows))


def product(base: Model, **values: Sequence[Any]) -> Iterator[Model]:
    """``base`` (a pydantic model) with every combination of the given values, the last varying fastest.

    ``product(Options(), activation=["relu", "tanh"], dropout=[0, 0.3])`` gives four. Raises UsageError for a
    value that cannot be.
    """
    kind = type(base)
    known = {name: getattr(base, name) for name in kind.model_fields}
    for combination in itertools.product(*values.values()):
        try:
            yield kind.model_validate({**known, **dict(zip(values, combination, strict=True))})
        except ValueError as error:
            raise UsageError(f"no such options: {' '.join(str(error).split())[:160]}") from None
