"""Shuffled photos against loops over patches, and orders against what they promise."""

from __future__ import annotations

import pytest
import torch

from fieldmark.nn.jigsaw import any_order, near_order, origins, shuffled


def shuffled_by_loop(image: torch.Tensor, order: list[int], n: int) -> torch.Tensor:
    out, h, w = image.clone(), image.shape[1] // n, image.shape[2] // n
    top, left = (image.shape[1] - n * h) // 2, (image.shape[2] - n * w) // 2
    for place, patch in enumerate(order):
        y, x = top + place // n * h, left + place % n * w
        v, u = top + patch // n * h, left + patch % n * w
        out[:, y : y + h, x : x + w] = image[:, v : v + h, u : u + w]
    return out


@pytest.mark.parametrize("n, side", [(1, 8), (2, 8), (4, 17), (7, 30), (8, 8)])
def test_shuffled_by_a_loop(n, side):
    torch.manual_seed(n)
    x, order = torch.randn(3, 2, side, side), any_order(3, n)
    before = x.clone()
    got = shuffled(x, order)
    for photo, row, ours in zip(x, order.tolist(), got, strict=True):
        assert torch.equal(ours, shuffled_by_loop(photo, row, n))
    assert torch.equal(x, before), "the photos themselves stay"
    assert torch.equal(got, x) == (n == 1)


def test_shuffled_back_and_too_small():
    torch.manual_seed(0)
    x, order = torch.randn(2, 3, 12, 12), any_order(2, 3)
    assert torch.equal(shuffled(shuffled(x, order), order.argsort(1)), x)
    assert torch.equal(shuffled(x, any_order(2, 13)), x), "patches of no pixels"


@pytest.mark.parametrize("make", [any_order, lambda batch, n: near_order(batch, n, 2.0)])
def test_orders_are_permutations(make):
    torch.manual_seed(0)
    order = make(50, 7)
    assert order.shape == (50, 49)
    assert torch.equal(order.sort(1).values, torch.arange(49).expand(50, -1))
    assert len(order.unique(dim=0)) == 50, "each photo has its own"


def test_any_order_is_even():
    torch.manual_seed(0)
    counts = torch.zeros(4, 4)
    for row in any_order(4000, 2).tolist():
        for place, patch in enumerate(row):
            counts[place, patch] += 1
    assert (counts / 4000 - 0.25).abs().max() < 0.04  # 6 standard errors


@pytest.mark.parametrize("reach", [0.4, 1.0, 2.0])
def test_patches_stay_near(reach):
    torch.manual_seed(0)
    order = near_order(200, 7, reach)
    patches, places = order.view(200, 7, 7), torch.arange(49).view(7, 7)
    across, down = (patches % 7 - places % 7).abs(), (patches // 7 - places // 7).abs()
    assert across.max() < 2 * reach and down.max() < 2 * reach
    if reach > 0.5:
        assert across.max() == down.max() == int(2 * reach - 1e-6), "and do move"
    else:
        assert torch.equal(order, torch.arange(49).expand(200, -1))


def test_a_row_is_sorted_by_its_numbers():
    """Equation 1 for one row, by hand: numbers i + r, r between -k and k."""
    torch.manual_seed(3)
    order = near_order(1, 4, 1.5)[0].view(4, 4)
    torch.manual_seed(3)
    across, down = (torch.rand(1, 4, 4)[0] for _ in range(2))
    rows = [sorted(range(4), key=lambda i, r=r: i + 1.5 * (2 * float(across[r, i]) - 1)) for r in range(4)]
    grid = [[4 * r + i for i in row] for r, row in enumerate(rows)]
    for c in range(4):
        column = sorted(range(4), key=lambda i, c=c: i + 1.5 * (2 * float(down[c, i]) - 1))
        assert order[:, c].tolist() == [grid[r][c] for r in column]


def test_origins_are_those_of_the_pixels():
    """A photo of its own coordinates, shuffled: the mean over each patch is where it came from."""
    torch.manual_seed(0)
    at = (torch.arange(28) + 0.5) / 14 - 1
    x = torch.stack([at.expand(28, 28), at[:, None].expand(28, 28)]).expand(3, -1, -1, -1)
    order = near_order(3, 7, 2.0)
    means = torch.nn.functional.avg_pool2d(shuffled(x, order), 4)
    torch.testing.assert_close(origins(order), means)
