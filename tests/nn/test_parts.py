"""Candidate boxes, suppression, crops and pasted maps against torchvision and loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.ops import box_iou
from torchvision.ops import nms as reference_nms

from fieldmark.nn.crops import crop, enlarged
from fieldmark.nn.graph import export
from fieldmark.nn.parts import (
    activation,
    alone,
    anchors,
    area,
    boxcar,
    chosen,
    crop_side,
    crops,
    evidence,
    evident,
    inner,
    narrowed,
    nms,
    overlap,
    paste,
    side_by_side,
    windows,
)


def random_boxes(*shape: int, seed: int = 0) -> torch.Tensor:
    corner = torch.rand(*shape, 2, generator=torch.Generator().manual_seed(seed)) * 0.6
    side = 0.05 + 0.3 * torch.rand(*shape, 2, generator=torch.Generator().manual_seed(seed + 1))
    return torch.cat([corner, corner + side], -1)


def scores(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_anchors_by_a_loop():
    shapes = ((0.2, 0.4), (0.9, 0.1))
    expected = []
    for height, width in shapes:
        for row in range(3):
            for column in range(5):
                y, x = (row + 0.5) / 3, (column + 0.5) / 5
                sides = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
                expected.append([min(1.0, max(0.0, side)) for side in sides])
    torch.testing.assert_close(anchors(3, 5, shapes), torch.tensor(expected))


@pytest.mark.parametrize("height, width", [(2, 3), (1, 1), (5, 7), (9, 2)])
def test_windows_by_a_loop(height, width):
    maps = scores(2, 5, 7)
    boxes, found = windows(maps, height, width)
    height, width = min(height, 5), min(width, 7)
    places = [(y, x) for y in range(5 - height + 1) for x in range(7 - width + 1)]
    assert boxes.shape == (len(places), 4) and found.shape == (2, len(places))
    for number, (y, x) in enumerate(places):
        torch.testing.assert_close(
            boxes[number], torch.tensor([x / 7, y / 5, (x + width) / 7, (y + height) / 5])
        )
        torch.testing.assert_close(found[:, number], maps[:, y : y + height, x : x + width].mean((1, 2)))


def test_overlap_and_area():
    one, many = random_boxes(4), random_boxes(4, 30, seed=3)
    expected = torch.stack([box_iou(a[None], b)[0] for a, b in zip(one, many, strict=True)])
    torch.testing.assert_close(overlap(one, many), expected)
    assert float(area(torch.tensor([0.25, 0.0, 0.75, 1.0]))) == 0.5
    nothing = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert float(overlap(nothing, nothing[None])) == 0, "and not NaN"


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 1.0])
def test_suppression_is_torchvisions(threshold):
    boxes, ranks = random_boxes(6, 40), scores(6, 40)
    picked = nms(boxes, ranks, 8, threshold)
    for row in range(6):
        expected = reference_nms(boxes[row], ranks[row], threshold)[:8]
        assert picked[row, : len(expected)].tolist() == expected.tolist()
        assert len(set(picked[row].tolist())) == 8
        rest = ranks[row, picked[row, len(expected) :]]
        assert rest.tolist() == rest.sort(descending=True).values.tolist(), "then the best passed over"
    shared = nms(boxes[0], ranks, 8, threshold)
    assert torch.equal(shared, nms(boxes[:1].expand(6, -1, -1), ranks, 8, threshold))


def test_fewer_boxes_than_wanted():
    boxes, ranks = random_boxes(2, 3), scores(2, 3)
    picked = nms(boxes, ranks, 5, 0.0)
    assert picked.shape == (2, 5) and picked.max() < 3
    assert all(len(set(row[:3])) == 3 for row in picked.tolist())
    torch.testing.assert_close(chosen(boxes, picked)[1, 2], boxes[1, picked[1, 2]])
    torch.testing.assert_close(chosen(boxes[0], picked)[1, 2], boxes[0, picked[1, 2]])


def test_crops_photo_by_photo():
    images, boxes = scores(2, 3, 16, 16), random_boxes(2, 4)
    looked = crops(images, boxes, 6)
    for number in range(8):
        row, k = divmod(number, 4)
        torch.testing.assert_close(looked[number], crop(images[row : row + 1], boxes[row, k : k + 1], 6)[0])


def test_a_crop_of_a_crop():
    y, x = torch.meshgrid(*[(torch.arange(64) + 0.5) / 64] * 2, indexing="ij")
    photo = torch.stack([x, y])[None]  # each place says where it is
    outer, within = torch.tensor([[0.1, 0.2, 0.7, 0.9]]), torch.tensor([[0.25, 0.25, 0.75, 0.5]])
    twice = crop(crop(photo, outer, 64), within, 8)
    torch.testing.assert_close(crop(photo, inner(outer, within), 8), twice, rtol=0, atol=1e-3)


def test_boxcar_by_the_formula():
    boxes, size, k = random_boxes(2), 6, 1.5

    def h(value: float) -> float:
        return 1 / (1 + math.exp(-k * value))

    masks = boxcar(boxes, size, k)
    for row, (left, top, right, bottom) in enumerate((boxes * size).tolist()):
        for j in range(size):
            for i in range(size):
                x, y = i + 0.5, j + 0.5
                value = (h(x - left) - h(x - right)) * (h(y - top) - h(y - bottom))
                assert float(masks[row, 0, j, i]) == pytest.approx(value, abs=1e-6)
    sharp = boxcar(torch.tensor([[0.25, 0.25, 0.75, 0.75]]), 16)
    assert float(sharp[0, 0, 8, 8]) == pytest.approx(1) and float(sharp[0, 0, 1, 8]) < 1e-9
    exact = boxes.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda b: boxcar(b, size, k), (exact,))


def test_pasted_where_the_crop_was():
    boxes = torch.tensor([[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 1.0, 1.0], [0.3, 0.3, 0.3, 0.3]])
    maps = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    pasted = paste(maps, boxes, 8)
    torch.testing.assert_close(pasted[0, 4:, 2:6], maps[0])
    assert pasted[0, :4].abs().max() == 0 and pasted[0, :, :2].abs().max() == 0
    torch.testing.assert_close(paste(maps[1:2], boxes[1:2], 4)[0], maps[1])
    assert pasted.isfinite().all()


def test_evidence_by_hand():
    """Where the answer is linear in the mean of a map, Grad-CAM is its class activation map over the positions."""
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    unused = torch.randn(2, 3, 2, 2).requires_grad_()
    weight = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    logits = x.mean((2, 3)) @ weight.T + 2 * y.unflatten(0, (2, 2)).mean((1, 3, 4)) @ weight.T
    one, two, three = evidence(logits, [x, y, unused])
    best = weight[logits.argmax(1)]
    torch.testing.assert_close(one, torch.einsum("bc,bchw->bhw", best, x.detach()).clamp_min(0) / 20)
    several = torch.einsum("bc,bkchw->bkhw", best, y.detach().unflatten(0, (2, 2))).clamp_min(0) / 4
    torch.testing.assert_close(two, several.flatten(0, 1))
    torch.testing.assert_close(three, activation(unused.detach()))


def test_evidence_of_several_looks_as_one_map():
    photo = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    closer = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    boxes = random_boxes(2, 3)

    def logits() -> torch.Tensor:
        return photo.mean((2, 3)) + closer.unflatten(0, (2, 3)).sum((1, 3, 4))

    whole, own = evidence(logits(), [photo, closer])
    expected = enlarged(whole, 8)
    for row in range(2):
        for k in range(3):
            box = boxes[row, k][None]
            expected[row] += paste(own[3 * row + k][None], box, 8)[0] / area(box)
    torch.testing.assert_close(evident(logits(), [(photo, None), (closer, boxes)], 8), expected)


@pytest.mark.parametrize(
    "side, share, stride, expected",
    [(448, 0.5, 32, 224), (320, 0.5, 32, 160), (75, 0.5, 32, 32), (64, 1, 32, 64), (20, 1, 32, 20)],
)
def test_sides_of_crops(side, share, stride, expected):
    assert crop_side(side, share, stride) == expected


def test_parts_side_by_side():
    """A linear layer over them gives the mean of what it gives of each part alone."""
    parts = [torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    z, head = side_by_side(parts, 10.0), torch.nn.Linear(15, 2)
    several = torch.stack([head(alone(z, number, 3)) for number in range(3)])
    torch.testing.assert_close(head(z), several.mean(0))
    unit = parts[1] / parts[1].norm(dim=1, keepdim=True)
    torch.testing.assert_close(several[1], unit @ head.weight[:, 5:10].T * 10 + head.bias)


def test_wide_parts_are_narrowed():
    assert narrowed(20, 8)(torch.ones(2, 20)).shape == (2, 8)
    assert torch.equal(narrowed(8, 8)(torch.ones(2, 8)), torch.ones(2, 8))


def test_they_export(tmp_path: Path):
    class Parts(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> Any:
            boxes, ranks = windows(activation(images), 3, 4)
            best = chosen(boxes, nms(boxes, ranks, 3, 0.3))
            looked = crops(images * boxcar(best[:, 0], 12), best, 5)
            return looked.unflatten(0, (-1, 3)).flatten(1)

    x = torch.rand(3, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    assert export(Parts(), x, tmp_path / "graph.onnx", "parts").error < 1e-4
