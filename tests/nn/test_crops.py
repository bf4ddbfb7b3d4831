"""Boxes and crops against loops over cells, torchvision's resize, and photos that hold their own coordinates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import resized_crop

from fieldmark.nn.crops import around, boxes_above, crop, drop, enlarged, kept, of_peak
from fieldmark.nn.graph import export


def maps(batch: int = 5, h: int = 4, w: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, h, w, generator=torch.Generator().manual_seed(seed))


def box_by_loop(one: torch.Tensor, threshold: float, pad: float) -> list[float]:
    h, w = one.shape
    cells = [(y, x) for y in range(h) for x in range(w) if float(one[y, x]) > threshold]
    if not cells:
        return [0.0, 0.0, 1.0, 1.0]
    ys, xs = zip(*cells, strict=True)
    sides = [min(xs) / w - pad, min(ys) / h - pad, (max(xs) + 1) / w + pad, (max(ys) + 1) / h + pad]
    return [min(1.0, max(0.0, side)) for side in sides]


@pytest.mark.parametrize("pad", [0.0, 0.1])
def test_boxes_by_a_loop(pad):
    x, thresholds = maps(40), torch.linspace(0.3, 1.02, 40)  # of 28 cells: many, few, none
    expected = [box_by_loop(one, t, pad) for one, t in zip(x, thresholds.tolist(), strict=True)]
    torch.testing.assert_close(boxes_above(x, thresholds, pad), torch.tensor(expected))
    torch.testing.assert_close(boxes_above(x[:3], 0.9), torch.tensor([box_by_loop(o, 0.9, 0) for o in x[:3]]))
    assert expected[-1] == [0.0, 0.0, 1.0, 1.0] and expected[20] != [0.0, 0.0, 1.0, 1.0]
    each = boxes_above(x, thresholds, torch.full((40,), pad))
    torch.testing.assert_close(each, torch.tensor(expected))


@pytest.mark.parametrize("value", [0.0, float("nan"), -1.0])
def test_a_map_that_marks_nothing_gives_the_whole_photo(value):
    x = torch.full((2, 3, 3), value)
    for boxes in (boxes_above(x, 0.0), boxes_above(x, of_peak(x, 0.5).clamp_min(0))):
        torch.testing.assert_close(boxes, torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2))


def test_of_peak():
    x = maps()
    for share in (0.3, torch.linspace(0.1, 0.9, 5)):
        expected = [float(one.max()) for one in x] * torch.as_tensor(share).expand(5).numpy()
        torch.testing.assert_close(of_peak(x, share), torch.tensor(expected, dtype=torch.float32))


def test_a_whole_photo_is_itself():
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(crop(x, torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2), 9), x, atol=1e-5, rtol=1e-4)


def test_crops_are_those_of_torchvision():
    """Where a box falls on whole pixels and its inner part is looked at (at edges torchvision sees no neighbour)."""
    x = torch.rand(3, 3, 32, 32)
    pixels = torch.tensor([[0, 0, 32, 32], [4, 8, 20, 24], [16, 0, 32, 16]])
    got = crop(x, pixels / 32, 48)
    for photo, (left, top, right, bottom), ours in zip(x, pixels.tolist(), got, strict=True):
        theirs = resized_crop(photo, top, left, bottom - top, right - left, [48, 48], antialias=False)
        torch.testing.assert_close(ours[:, 3:-3, 3:-3], theirs[:, 3:-3, 3:-3], atol=1e-5, rtol=1e-4)


def test_crops_of_a_photo_that_shows_its_coordinates():
    """Every pixel says where it came from; the box's gradient is that of the coordinates."""
    n = 64
    at = (torch.arange(n) + 0.5) / n
    ramp = torch.stack([at.expand(n, n), at[:, None].expand(n, n)])[None].double()
    boxes = torch.tensor([[0.25, 0.1, 0.75, 0.9]], dtype=torch.float64, requires_grad=True)
    got = crop(ramp, boxes, 10)[0]
    steps = (torch.arange(10) + 0.5).double() / 10
    torch.testing.assert_close(got[0], (0.25 + 0.5 * steps).expand(10, 10))
    torch.testing.assert_close(got[1], (0.1 + 0.8 * steps)[:, None].expand(10, 10))
    got[0].mean().backward()
    torch.testing.assert_close(boxes.grad, torch.tensor([[0.5, 0.0, 0.5, 0.0]], dtype=torch.float64))


def test_gradients():
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.13, 0.21, 0.83, 0.71]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, b: crop(x, b, 4), (x, boxes))


def test_drop_by_a_loop():
    x, m = torch.randn(4, 3, 8, 8), maps(4, 4, 4)
    large = enlarged(m, 8)
    torch.testing.assert_close(
        large, torch.nn.functional.interpolate(m[None], size=8, mode="bilinear", align_corners=False)[0]
    )
    thresholds = of_peak(m, torch.tensor([0.2, 0.5, 0.7, 1.0]))
    got = drop(x, m, thresholds)
    for i in range(4):
        for y in range(8):
            for z in range(8):
                gone = large[i, y, z] > thresholds[i]
                torch.testing.assert_close(got[i, :, y, z], torch.zeros(3) if gone else x[i, :, y, z])
    assert (got[3] == x[3]).all() and (got[0] == 0).any()


def test_a_constant_map_drops_nothing():
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(drop(x, torch.ones(2, 2, 2), 0.5), x)
    assert kept(torch.zeros(1, 2, 3), 0.0, (4, 6)).shape == (1, 1, 4, 6)


class Whole(torch.nn.Module):
    """A photo, cropped to its bright part and without the brightest."""

    def forward(self, x):
        marks = x.square().mean(1)
        cropped = crop(x, boxes_above(marks, of_peak(marks, 0.5), 0.05), 12)
        return torch.cat([cropped, drop(x, marks, of_peak(marks, 0.8))], 1).flatten(1)


def test_it_exports(tmp_path: Path):
    x = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    x[1] = 0  # nothing is bright
    assert export(Whole(), x, tmp_path / "crops.onnx", "out").error < 1e-5
    assert np.isfinite(Whole()(x).numpy()).all()


def test_around_all_boxes():
    nan = float("nan")
    boxes = torch.tensor(
        [[[0.1, 0.5, 0.3, 0.6], [0.2, 0.2, 0.9, 0.4]], [[nan] * 4, [0.0, 0.1, 1.0, 0.2]], [[nan] * 4] * 2]
    )
    expected = torch.tensor([[0.1, 0.2, 0.9, 0.6], [0.0, 0.1, 1.0, 0.2], [nan] * 4])
    torch.testing.assert_close(around(boxes), expected, equal_nan=True)
