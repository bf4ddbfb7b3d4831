"""From probabilities and true labels to an ``Evaluation``. Plain numpy: it runs where predict runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from fieldmark.runtime import metrics
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.results import TOP, Evaluation

if TYPE_CHECKING:
    import pyarrow as pa

UNLABELLED = "no label"
UNSEEN = "label never seen in training"
UNREADABLE = "unreadable"


def evaluation(
    paths: Sequence[str],
    labels: Sequence[str | None],
    probabilities: ArrayLike,
    classes: Sequence[str],
    excluded_by_reason: Mapping[str, int] | None = None,
    hashes: Sequence[str] | None = None,
) -> Evaluation:
    """Compare ``probabilities`` [N, C] over ``classes`` with the true ``labels`` (by name) of N photos.

    Photos without a label, with a label that is not among the classes, or whose row holds NaN (unreadable)
    are left out and counted, beside those that the caller left out already (``excluded_by_reason``).
    ``hashes`` of the files let ``compare`` match two evaluations whose paths differ.

    Raises FieldmarkError where no photo is left.
    """
    p, index = np.asarray(probabilities), {name: i for i, name in enumerate(classes)}
    reasons = [_reason(label, index) for label in labels]
    finite = np.isfinite(p).all(1)
    reasons = [reason or (None if ok else UNREADABLE) for reason, ok in zip(reasons, finite, strict=True)]
    excluded = Counter(excluded_by_reason or {}) + Counter(reason for reason in reasons if reason)
    keep = [i for i, reason in enumerate(reasons) if reason is None]
    if not keep:
        why = ", ".join(f"{count} {reason}" for reason, count in excluded.most_common())
        raise FieldmarkError(f"nothing to evaluate: no photo is left{f' ({why})' if why else ''}")

    p = p[keep]
    y = np.array([index[str(labels[i])] for i in keep])
    called = p.argmax(1)
    scores = metrics.class_scores(y, called, len(classes))
    precision, recall, f1 = scores.macro()
    right = int((called == y).sum())
    names = [str(paths[i]) for i in keep]
    predictions = _table(names, p, y, classes)
    if hashes is not None:
        predictions = predictions.append_column("hash", [[hashes[i] for i in keep]])

    return Evaluation(
        n=len(y),
        top1=right / len(y),
        top1_ci95=metrics.wilson(right, len(y)),
        top5=metrics.top_k_accuracy(p, y, TOP),
        balanced_accuracy=scores.balanced_accuracy(),
        macro_precision=precision,
        macro_recall=recall,
        macro_f1=f1,
        nll=metrics.nll(p, y),
        ece=metrics.ece(p, y),
        per_class={
            name: {
                "n": int(scores.n[i]),
                "precision": float(scores.precision[i]),
                "recall": float(scores.recall[i]),
                "f1": float(scores.f1[i]),
            }
            for i, name in enumerate(classes)
            if scores.occurs[i]
        },
        classes=list(classes),
        predictions=predictions,
        excluded=excluded.total(),
        excluded_by_reason=dict(excluded),
    )


def _reason(label: str | None, index: Mapping[str, int]) -> str | None:
    if label is None:
        return UNLABELLED
    return None if label in index else UNSEEN


def _table(paths: list[str], p: np.ndarray, y: np.ndarray, classes: Sequence[str]) -> pa.Table:
    """The predictions as a table; labels and scores of ranks beyond the number of classes are null."""
    import pyarrow as pa

    order = np.argsort(-p, axis=1, kind="stable")[:, :TOP]
    scores = np.take_along_axis(p, order, axis=1)
    columns: dict[str, pa.Array] = {
        "path": pa.array(paths, pa.string()),
        "label": pa.array([classes[c] for c in y], pa.string()),
        "predicted": pa.array([classes[c] for c in order[:, 0]], pa.string()),
        "score": pa.array(scores[:, 0]),
        "label_score": pa.array(p[np.arange(len(p)), y]),
        "correct": pa.array(order[:, 0] == y),
    }
    for rank in range(1, TOP):
        known = rank < order.shape[1]
        columns[f"label_{rank + 1}"] = (
            pa.array([classes[c] for c in order[:, rank]]) if known else pa.nulls(len(p), pa.string())
        )
        columns[f"score_{rank + 1}"] = (
            pa.array(scores[:, rank]) if known else pa.nulls(len(p), columns["score"].type)
        )
    return pa.table(columns)
