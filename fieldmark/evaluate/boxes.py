"""How well boxes and masks fit those that are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Boxes fit from this overlap on.
FITS = 0.5


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [N, 4] and [M, 4] (left, top, right, bottom): [N, M]."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), 2)
    area = [np.prod(np.clip(one[:, 2:] - one[:, :2], 0, None), 1) for one in (a, b)]
    union = area[0][:, None] + area[1][None] - both
    return both / np.maximum(union, 1e-12)


def corloc(found: Sequence[np.ndarray], known: Sequence[np.ndarray], fits: float = FITS) -> float:
    """Share of photos whose first box fits one of the known ones (correct localisation; Deselaers et al., "Weakly
    Supervised Localization and Learning with Generic Knowledge", IJCV 2012). found, known: [n, 4] a photo."""
    right = [
        len(one) > 0 and len(truth) > 0 and float(iou(one[:1], truth).max()) >= fits
        for one, truth in zip(found, known, strict=True)
    ]
    return float(np.mean(right)) if right else float("nan")


def average_precision(
    found: Sequence[np.ndarray], scores: Sequence[np.ndarray], known: Sequence[np.ndarray], fits: float = FITS
) -> float:
    """Area under precision over recall of one class's boxes (PASCAL VOC 2010: precision made monotone, all points).

    found: [n, 4], scores: [n], known: [m, 4] a photo. Each known box counts once, for the surest box that fits it;
    further ones are wrong. NaN where no box is known.
    """
    total = sum(len(truth) for truth in known)
    if not total:
        return float("nan")
    rows = [(float(s), photo, i) for photo, own in enumerate(scores) for i, s in enumerate(own)]
    taken = [np.zeros(len(truth), bool) for truth in known]
    right = np.zeros(len(rows), bool)
    for place, (_, photo, i) in enumerate(sorted(rows, key=lambda row: -row[0])):
        if not len(known[photo]):
            continue
        overlap = iou(found[photo][i : i + 1], known[photo])[0]
        best = int(overlap.argmax())
        if overlap[best] >= fits and not taken[photo][best]:
            taken[photo][best] = right[place] = True
    hits = np.cumsum(right)
    recall, precision = hits / total, hits / np.arange(1, len(rows) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def mask_iou(found: np.ndarray, known: np.ndarray) -> float:
    """Intersection over union of two masks of one shape; 1 where both are empty."""
    union = np.logical_or(found, known).sum()
    return float(np.logical_and(found, known).sum() / union) if union else 1.0
