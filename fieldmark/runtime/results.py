"""Typed results: what the commands print and the Python face returns."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

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


@dataclass
class Evaluation:
    """How well photos of known class were recognised; scores in 0 to 1, conventions in ``metrics.py``.

    ``per_class`` holds the classes that occur among the labels or the predictions, so that the macro scores
    are its means. ``confusion`` [C, C] counts photos, true classes in rows, in the order of ``classes``
    (made when first asked for: it is large where classes are many).
    ``predictions`` has a row a photo: path, label (the true one), predicted, score, label_score (the
    probability of the true class), correct, label_2, score_2 … label_5, score_5, and hash where known.
    """

    n: int
    top1: float
    top1_ci95: tuple[float, float]
    top5: float
    balanced_accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    nll: float
    ece: float
    per_class: dict[str, dict[str, float]]
    classes: list[str]
    predictions: pa.Table
    excluded: int = 0
    excluded_by_reason: dict[str, int] = field(default_factory=dict)

    @cached_property
    def confusion(self) -> np.ndarray:
        import numpy as np

        from fieldmark.runtime.metrics import confusion_matrix

        index = {name: i for i, name in enumerate(self.classes)}
        true, called = (
            np.array([index[name] for name in self.predictions[column].to_pylist()])
            for column in ("label", "predicted")
        )
        return confusion_matrix(true, called, len(self.classes))

    def to_dict(self) -> dict[str, Any]:
        """All but ``classes``, ``confusion`` and ``predictions``, ready for JSON."""
        small = [item.name for item in fields(self) if item.name not in ("classes", "predictions")]
        return {name: getattr(self, name) for name in small} | {"top1_ci95": list(self.top1_ci95)}

    def to_pandas(self) -> Any:
        """The table of predictions as a pandas frame (pandas is not among fieldmark's own needs)."""
        return self.predictions.to_pandas()

    def save(self, folder: str | Path) -> None:
        """Write ``predictions.parquet`` and ``evaluation.json`` into a folder that exists."""
        import pyarrow.parquet as pq

        pq.write_table(self.predictions, Path(folder) / "predictions.parquet", compression="zstd")
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=2)
        (Path(folder) / "evaluation.json").write_text(text + "\n", encoding="utf-8")
