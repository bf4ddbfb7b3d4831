"""Windows against plain crops, and the gradient estimator against the exact expectation."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn import functional as F

from fieldmark.nn.glimpse import boxes, glimpse, peak_place, pyramid, reinforce, spots


def photos(batch: int = 2, height: int = 40, width: int = 48) -> torch.Tensor:
    return torch.rand(
        batch, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


def place(x: float, y: float, height: int, width: int) -> list[float]:
    """From pixels to -1 … 1."""
    return [2 * x / width - 1, 2 * y / height - 1]


# -- windows


def test_windows_are_crops():
    """Where the edges of all windows lie on pixels: crops, averaged over 1, 2 and 4 pixels, zeros around the photo."""
    x = photos()
    height, width = x.shape[2:]
    centres = [(16, 8), (44, 36)]
    places = torch.tensor([place(*c, height, width) for c in centres], dtype=torch.float64)
    seen = glimpse(pyramid(x, 3), places, 8, (height, width))
    assert seen.shape == (2, 3, 3, 8, 8)
    padded = F.pad(x, (32, 32, 32, 32))
    for photo, (cx, cy) in enumerate(centres):
        for k in range(3):
            half = 4 * 2**k
            left, top = cx + 32 - half, cy + 32 - half
            crop = padded[photo, :, top : top + 2 * half, left : left + 2 * half]
            torch.testing.assert_close(seen[photo, k], F.avg_pool2d(crop, 2**k))


def test_between_pixels():
    x = photos(1)
    at = torch.tensor([place(20.5, 16, 40, 48)], dtype=torch.float64)
    seen = glimpse([x], at, 4, (40, 48))[0, 0]
    torch.testing.assert_close(seen, (x[0, :, 14:18, 18:22] + x[0, :, 14:18, 19:23]) / 2)


def test_a_side_that_is_odd():
    x = photos(1, 41, 47)
    at = torch.tensor([place(20.5, 16.5, 41, 47)], dtype=torch.float64)
    levels = pyramid(x, 2)
    torch.testing.assert_close(glimpse(levels, at, 5, (41, 47))[0, 0], x[0, :, 14:19, 18:23])
    assert levels[1].shape[2:] == (20, 23), "the last row and column are left out"
    wide = glimpse(levels, torch.tensor([place(21, 17, 41, 47)], dtype=torch.float64), 5, (41, 47))[0, 1]
    torch.testing.assert_close(wide, F.avg_pool2d(x[0, :, 12:22, 16:26], 2))


def test_boxes_of_windows():
    at = torch.tensor([[[0.0, 0.0], [1.0, -1.0]]])
    assert boxes(at, 8, (32, 16)).tolist() == [[[0.25, 0.375, 0.75, 0.625], [0.75, -0.125, 1.25, 0.125]]]


def test_spots():
    at = torch.tensor([[[-0.75, 0.25], [0.0, 0.0]]])
    maps = spots(at, 8, 0.1)
    assert maps.shape == (1, 2, 8, 8) and maps.max() <= 1
    assert divmod(int(maps[0, 0].argmax()), 8)[1] in (0, 1) and divmod(int(maps[0, 0].argmax()), 8)[0] in (
        4,
        5,
    )
    away = ((0.5 / 8 - 0.125) ** 2 + (4.5 / 8 - 0.625) ** 2) / 0.1**2
    assert float(maps[0, 0, 4, 0]) == pytest.approx(float(torch.tensor(-0.5 * away).exp()), rel=1e-4)


def test_peak_place():
    scores = torch.randn(2, 1, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = scores.flatten(1).softmax(1).view(2, 3, 5)
    for photo in range(2):
        x = sum(share[photo, i, j] * ((j + 0.5) / 5 * 2 - 1) for i, j in product(range(3), range(5)))
        y = sum(share[photo, i, j] * ((i + 0.5) / 3 * 2 - 1) for i, j in product(range(3), range(5)))
        torch.testing.assert_close(peak_place(scores)[photo], torch.stack([x, y]))  # type: ignore[list-item]
    assert peak_place(torch.zeros(1, 1, 4, 6)).abs().max() < 1e-6


# -- the estimator


def test_the_estimate_is_right_on_average():
    """Two choices among three, the second's chances depending on the first: the mean of the estimate's gradient over
    all nine ways, weighted by their probability, is minus the gradient of the expected reward, whatever the
    baseline."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_()
    second = torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    reward = torch.rand(3, 3, generator=generator, dtype=torch.float64)
    p, q = first.softmax(0), second.softmax(1)
    exact = torch.autograd.grad((p[:, None] * q * reward).sum(), (first, second))
    for level in (0.0, 0.5, -3.0):
        mean = [torch.zeros_like(first), torch.zeros_like(second)]
        for a, b in product(range(3), range(3)):
            chances = torch.stack([first.log_softmax(0)[a], second.log_softmax(1)[a, b]])[None]
            expected = torch.tensor([[level, level + a]], dtype=torch.float64)  # may know the first choice
            loss, _ = reinforce(chances, reward[a, b][None, None], expected)
            for total, gradient in zip(
                mean, torch.autograd.grad(loss, (first, second), allow_unused=True), strict=True
            ):
                total += float(p[a] * q[a, b]) * gradient
        for total, truth in zip(mean, exact, strict=True):
            torch.testing.assert_close(total, -truth)


def test_a_baseline_makes_it_less_noisy():
    logits = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 0.9], dtype=torch.float64)
    spread = {}
    for level in (0.0, 0.95):
        gradients = []
        for choice in range(2):
            chance = logits.log_softmax(0)[choice].view(1, 1)
            loss, _ = reinforce(
                chance, reward[[choice], None], torch.full((1, 1), level, dtype=torch.float64)
            )
            gradients.append(torch.autograd.grad(loss, logits)[0])
        spread[level] = float((gradients[0] - gradients[1]).norm())
    assert spread[0.95] < 0.1 * spread[0.0]


def test_the_baseline_learns_the_reward_alone():
    chance = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    expected = torch.tensor([[0.25, 0.5]], requires_grad=True)
    policy, baseline = reinforce(chance, torch.tensor([[1.0]]), expected)
    assert float(policy) == pytest.approx(0.75 + 2 * 0.5) and float(baseline) == pytest.approx(
        (0.75**2 + 0.5**2) / 2
    )
    (policy + baseline).backward()
    torch.testing.assert_close(expected.grad, torch.tensor([[-0.75, -0.5]]))
    torch.testing.assert_close(chance.grad, torch.tensor([[-0.75, -0.5]]))
