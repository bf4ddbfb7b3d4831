"""Boxes and masks against those that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from fieldmark.evaluate.boxes import average_precision, corloc, iou, mask_iou

NONE = np.empty((0, 4))


def some(seed: int, n: int) -> np.ndarray:
    dice = np.random.default_rng(seed)
    corners = dice.uniform(0, 60, (n, 2))
    return np.concatenate([corners, corners + dice.uniform(0, 40, (n, 2))], 1)


def test_overlaps_are_those_of_torchvision() -> None:
    a, b = some(0, 30), some(1, 20)
    expected = box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(iou(a, b), expected, atol=1e-9)
    assert iou(NONE, b).shape == (0, 20)


def test_correct_localisation() -> None:
    truth = np.array([[0, 0, 10, 10], [50, 50, 60, 60]], float)
    good, second, bad = truth[1:] + 1, np.concatenate([some(2, 1) + 200, truth]), some(3, 1) + 200
    found = [good, second, bad, NONE, good]
    assert corloc(found, [truth, truth, truth, truth, NONE]) == pytest.approx(1 / 5)
    assert np.isnan(corloc([], []))


def test_average_precision_by_hand() -> None:
    """Surest first: right, wrong, right, the same thing again; three things are known."""
    truth = [np.array([[0, 0, 10, 10], [20, 20, 30, 30]], float), np.array([[5, 5, 15, 15]], float)]
    found = [
        np.array([[0, 0, 10, 10], [40, 40, 50, 50], [0, 0, 10, 11]], float),
        np.array([[5, 5, 15, 16]], float),
    ]
    scores = [np.array([0.9, 0.8, 0.6]), np.array([0.7])]
    assert average_precision(found, scores, truth) == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    assert average_precision([NONE, NONE], [np.empty(0)] * 2, truth) == 0
    assert np.isnan(average_precision(found, scores, [NONE, NONE]))
    assert average_precision(truth, [np.ones(2), np.ones(1)], truth) == 1


def test_masks() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert mask_iou(a, b) == 1
    a[:2], b[1:3] = True, True
    assert mask_iou(a, b) == pytest.approx(4 / 12)
