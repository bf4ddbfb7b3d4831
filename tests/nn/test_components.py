"""Connected components against scipy's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from fieldmark.nn.components import components, largest_component, sizes
from fieldmark.nn.graph import export

TOUCHING = np.ones((3, 3), int)


def noise(count: int, h: int, w: int) -> np.ndarray:
    """Masks of every density."""
    dice = np.random.default_rng(0)
    return dice.random((count, h, w)) < dice.random((count, 1, 1))


def snake(h: int, w: int) -> np.ndarray:
    mask = np.ones((h, w), bool)
    mask[1::2] = False
    mask[1::4, -1] = mask[3::4, 0] = True
    return mask


def spiral(n: int) -> np.ndarray:
    """A path inwards, one cell wide."""
    mask, y, x = np.zeros((n, n), bool), 0, 0
    legs = [n - 1, *(length for k in range(n - 1, 0, -2) for length in (k, k))]
    mask[0, 0] = True
    for number, length in enumerate(legs):
        dy, dx = ((0, 1), (1, 0), (0, -1), (-1, 0))[number % 4]
        for _ in range(length):
            y, x = y + dy, x + dx
            mask[y, x] = True
    return mask


def agree(labels: torch.Tensor, mask: np.ndarray) -> None:
    """The same cells together as in scipy's answer."""
    truth, count = label(mask, TOUCHING)
    ours = labels.numpy()
    assert ((ours > 0) == mask).all()
    pairs = set(zip(truth[mask].tolist(), ours[mask].tolist(), strict=True))
    assert len(pairs) == count == len({number for _, number in pairs})
    for number in {n for _, n in pairs}:
        assert np.flatnonzero(ours.ravel() == number).max() == number - 1, "named by its last cell"


@pytest.mark.parametrize("h, w", [(1, 1), (1, 9), (7, 7), (14, 14), (5, 20)])
def test_components_of_noise(h, w):
    masks = noise(60, h, w)
    for labels, mask in zip(components(torch.from_numpy(masks)), masks, strict=True):
        agree(labels, mask)


@pytest.mark.parametrize("n", [7, 14, 28])
def test_winding_components(n):
    one, two = snake(n, n), spiral(n)
    kinds = [one, one.T, two, two.T]
    masks = np.stack([m for kind in kinds for m in (kind, kind[::-1], kind[:, ::-1], kind[::-1, ::-1])])
    for labels, mask in zip(components(torch.from_numpy(masks.copy())), masks, strict=True):
        assert label(mask, TOUCHING)[1] == 1
        agree(labels, mask)


def test_too_few_rounds_leave_pieces():
    labels = components(torch.from_numpy(snake(14, 14))[None], rounds=1)
    assert len(labels.unique()) > 2


def test_sizes_and_the_largest():
    masks = noise(60, 9, 11)
    masks[0] = False
    masks[1] = True
    labels = components(torch.from_numpy(masks))
    counted, largest = sizes(labels), largest_component(torch.from_numpy(masks))
    for row, mask in enumerate(masks):
        truth, count = label(mask, TOUCHING)
        counts = np.bincount(truth.ravel(), minlength=count + 1)
        counts[0] = 0
        assert (counted[row].numpy() == counts[truth]).all()
        kept = largest[row].numpy()
        assert kept.sum() == counts.max()
        assert len(np.unique(truth[kept])) == min(count, 1)
    assert not largest[0].any() and largest[1].all()


def test_of_equal_ones_the_last():
    mask = torch.tensor([[[1, 1, 0, 0, 1], [0, 0, 0, 0, 1]]]).bool()
    assert largest_component(mask)[0].tolist() == [[False] * 4 + [True]] * 2


def test_it_exports(tmp_path: Path):
    class Largest(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return largest_component(images[:, 0] > 0.4).float()

    x = torch.rand(3, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    assert export(Largest(), x, tmp_path / "graph.onnx", "largest").error == 0
