"""Typed results: what the commands print and the Python face returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: How many classes a prediction lists.
TOP = 5


@dataclass(frozen=True)
class Skipped:
    """A photo that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Prediction:
    """The answer for one photo: classes with their calibrated probabilities, best first.

    ``top`` is empty and ``error`` says why where the photo could not be read.
    """

    path: str
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None

    @property
    def label(self) -> str | None:
        return self.top[0][0] if self.top else None

    @property
    def score(self) -> float | None:
        return self.top[0][1] if self.top else None

    def to_row(self) -> dict[str, Any]:
        """One flat row: path, label, score, label_2, score_2 … label_5, score_5, error."""
        row: dict[str, Any] = {"path": self.path}
        for rank in range(TOP):
            name, score = self.top[rank] if rank < len(self.top) else (None, None)
            suffix = "" if rank == 0 else f"_{rank + 1}"
            row[f"label{suffix}"], row[f"score{suffix}"] = name, score
        row["error"] = self.error
        return row

    to_dict = to_row
