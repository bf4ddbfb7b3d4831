"""What training ends with, whatever the mode: all that the model folder and the report are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fieldmark.methods.descriptor import DescriptorGraph
from fieldmark.runtime.decision import softmax
from fieldmark.runtime.evaluation import evaluation
from fieldmark.runtime.results import Evaluation, Skipped
from fieldmark.train.heads.head import Choice, Head, Subspace
from fieldmark.train.settings import Settings


@dataclass
class Known:
    """Photos from whose descriptors classes can be added later.

    z: [n, d] descriptors, y: [n] class numbers; space: their subspace; squared: the fit by ridge regression,
    which added classes need whatever the head's own loss.
    """

    z: np.ndarray
    y: np.ndarray
    space: Subspace
    squared: Choice


@dataclass
class Judged:
    """Answers to photos by weights that had not seen them: ``how`` is "out of fold" or "held out".

    rows: [n] of the learned photos; logits: [n, C]; temperature: fitted on them.
    """

    how: str
    rows: np.ndarray
    logits: np.ndarray
    temperature: float


@dataclass
class Trained:
    """A recogniser, before it is written.

    graph: from pixels to descriptor; paths, content (hashes), y: [N] of the photos that it was made from; coarse: path
    -> content hash of those that taught beside them by a coarser group alone; network: what the method was made with,
    beside its backbone; seconds: by what they were spent on; tried: what was compared on the way; chosen: settings that
    were found; curve: a row an evaluation; cross_validation: of `by_fold`, out_of_fold: answers to all photos by models
    that did not see them, where such models were trained; prototypes: rows of prototypes.csv; serves:
    the only engine that computes its graph ("": any).
    """

    settings: Settings
    graph: DescriptorGraph
    classes: list[str]
    paths: list[str]
    content: list[str]
    y: np.ndarray
    known: Known
    judged: Judged
    head: Head
    engine: str
    mode: str = "instant"
    coarse: dict[str, str] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    computed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    tried: list[dict[str, Any]] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    cross_validation: dict[str, Any] | None = None
    out_of_fold: Evaluation | None = None
    prototypes: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    serves: str = ""

    def evaluation(self) -> Evaluation:
        """How good it is, by its own photos."""
        rows = self.judged.rows.tolist()
        return evaluation(
            [self.paths[i] for i in rows],
            [self.classes[self.y[i]] for i in rows],
            softmax(self.judged.logits, self.judged.temperature),
            self.classes,
            hashes=[self.content[i] for i in rows],
        )


def by_fold(fold: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """Accuracy fold by fold, its mean and its spread (standard deviation; None for a single fold).

    fold: [N] numbers from 0; correct: [N] bool.
    """
    folds = [
        {"fold": int(k) + 1, "n": int((fold == k).sum()), "top1": float(correct[fold == k].mean())}
        for k in np.unique(fold)
    ]
    top1 = [one["top1"] for one in folds]
    spread = float(np.std(top1, ddof=1)) if len(top1) > 1 else None
    return {"folds": folds, "mean": float(np.mean(top1)), "spread": spread}
