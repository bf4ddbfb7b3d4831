"""The detector: by the common tests, its targets and losses by loops over cells, its boxes by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from method_tests import CLASSES, TrainedTests, images
from torch.nn.functional import binary_cross_entropy, one_hot
from torchvision.ops import box_iou, generalized_box_iou

from fieldmark.losses.combine import build
from fieldmark.methods.fcos import SIDE, cells_of
from fieldmark.methods.task import Batch
from fieldmark.train.network import Network

NAN = float("nan")
#: Of two photos: one within the other, of another class, and one alone.
BOXES = torch.tensor(
    [
        [[0.04, 0.1, 0.93, 0.87, 0], [0.3, 0.35, 0.6, 0.7, 1], [NAN] * 5],
        [[0.5, 0.0, 0.9, 0.3, 3], [NAN] * 5, [NAN] * 5],
    ]
)


class TestFCOS(TrainedTests):
    name = "fcos"
    steps = 20

    def total(self, network: Network, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        boxes = BOXES[torch.arange(len(x)) % 2]
        boxes = torch.cat([boxes[..., :4], boxes[..., 4:] % network.classes], 2)
        return network.module(x, y, turn=0, progress=0.5, boxes=boxes)["loss"]

    def test_levels_are_stages_or_the_last_map(self):
        convolutions, tokens = self.make("test_resnet", 64), self.make("test_vit", 64)
        with torch.inference_mode():
            for method, sides in ((convolutions, [8, 4, 2]), (tokens, [4])):
                maps = method.pyramid(method.backbone(images(2, 64)))
                assert [one.shape for one in maps] == [(2, method.options.width, s, s) for s in sides]

    def test_its_descriptor_by_hand(self):
        method: Any = self.make("test_resnet", 64)
        x = images(2, 64)
        with torch.inference_mode():
            features = method.backbone(x)
            pooled = [one.clamp_min(0).flatten(2).mean(2) for one in method.pyramid(features)]
            parts = [features.embedding, torch.cat(pooled, 1)]
            truth = torch.cat([1.5 * part / part.norm(dim=1, keepdim=True) for part in parts], 1)
            torch.testing.assert_close(method.describe(x), truth)

    def test_its_losses_by_loops_over_cells(self):
        """A cell in a box, near its middle, at the level for such sides, learns the smallest box; others: nothing."""
        method: Any = self.make("test_resnet", 128)
        with torch.no_grad():
            maps = method.pyramid(method.backbone(images(2, 128)))
            said = method.detector.head(maps)
            p = said["cls_logits"].sigmoid().double()
            got = method.found(maps, BOXES)
        chosen = [
            [responsible(x, y, size, number, BOXES[b]) for x, y, size, number in centres(maps)]
            for b in (0, 1)
        ]
        assert {one for row in chosen for one in row} == {-1, 0, 1}
        cells = [number for *_, number in centres(maps)]
        assert {n for row in chosen for n, one in zip(cells, row, strict=True) if one >= 0} == {0, 1}
        positive, focal, sides, middle = 0, 0.0, 0.0, 0.0
        for b, row in enumerate(chosen):
            for cell, ((x, y, size, _), one) in enumerate(zip(centres(maps), row, strict=True)):
                truth = one_hot(BOXES[b, one, 4].long(), CLASSES) if one >= 0 else torch.zeros(CLASSES)
                right = torch.where(truth == 1, p[b, cell], 1 - p[b, cell])
                alpha = torch.where(truth == 1, 0.25, 0.75)
                focal += float((-alpha * (1 - right) ** 2 * right.log()).sum())
                if one < 0:
                    continue
                positive += 1
                box = BOXES[b, one, :4]
                ltrb = said["bbox_regression"][b, cell] * size
                told = torch.tensor([x, y, x, y]) + ltrb * torch.tensor([-1, -1, 1, 1])
                sides += 1 - float(generalized_box_iou(told[None], box[None]))
                left, top, right_, bottom = x - box[0], y - box[1], box[2] - x, box[3] - y
                share = (min(left, right_) / max(left, right_) * min(top, bottom) / max(top, bottom)) ** 0.5
                middle += float(binary_cross_entropy(said["bbox_ctrness"][b, cell, 0].sigmoid(), share))
        for name, value in (("classes", focal), ("sides", sides), ("centreness", middle)):
            assert float(got[name]) == pytest.approx(value / positive, rel=1e-3), name

    def test_views_without_boxes_teach_their_class_only(self):
        method: Any = self.make("test_resnet", 64)
        criterion, x, y = (
            build("cross_entropy", classes=CLASSES, embedding=5),
            images(2, 64),
            torch.tensor([0, 3]),
        )
        nowhere = torch.full_like(BOXES, NAN)
        some = torch.stack([BOXES[0], nowhere[1]])
        steps = [method.training_step(Batch(x, y, boxes=b), criterion) for b in (None, nowhere, some, BOXES)]
        plain = criterion(method(x), y, None)["loss"]
        for none in steps[:2]:
            torch.testing.assert_close(none["loss"], plain)
        alone = method.training_step(Batch(x[:1], y[:1], boxes=BOXES[:1]), criterion)
        for name in ("classes", "sides", "centreness"):
            torch.testing.assert_close(steps[2][name], alone[name])
        assert steps[3]["loss"] > plain

    def test_in_half_precision(self):
        method: Any = self.make("test_resnet", 64)
        criterion, y = build("cross_entropy", classes=CLASSES, embedding=5), torch.tensor([0, 3])
        batch = Batch(images(2, 64), y, boxes=BOXES)
        whole = method.training_step(batch, criterion)
        with torch.autocast("cpu", torch.bfloat16):
            half = method.training_step(batch, criterion)
        for name in ("loss", "classes", "sides", "centreness"):
            torch.testing.assert_close(half[name], whole[name], rtol=0.03, atol=0.01)

    def test_boxes_by_hand(self, monkeypatch):
        """What cells say becomes boxes; of those that overlap the surest is left; weak ones go."""
        method: Any = self.make("test_resnet", 64)
        method.eval()
        said = {
            "cls_logits": torch.full((1, 84, CLASSES), -9.0),
            "bbox_regression": torch.ones(1, 84, 4),
            "bbox_ctrness": torch.zeros(1, 84, 1),
        }

        def says(cell: int, number: int, score: float, ltrb: list[float]) -> None:
            p = torch.tensor(score**2 / 0.5)  # centreness is a half
            said["cls_logits"][0, cell, number] = p.logit()
            said["bbox_regression"][0, cell] = torch.tensor(ltrb)

        says(2 * 8 + 3, 1, 0.6, [1, 2, 2, 1.5])  # finest level: row 2, column 3
        says(2 * 8 + 4, 1, 0.5, [2, 2, 1, 1.5])  # the same box
        said["cls_logits"][0, 2 * 8 + 3, 3] = torch.tensor(0.55**2 / 0.5).logit()  # a look-alike
        says(64 + 1 * 4 + 2, 0, 0.4, [1, 1, 3, 1])  # middle level, over the edge
        says(64 + 16 + 3, 2, 0.1, [0.5, 0.5, 0.5, 0.5])
        monkeypatch.setattr(method.detector.head, "forward", lambda maps: said)
        (found,) = method.boxes(images(1, 64), 0.2)
        truth = [[2.5 / 8, 0.5 / 8, 5.5 / 8, 4 / 8], [1.5 / 4, 0.5 / 4, 1.0, 2.5 / 4]]
        torch.testing.assert_close(found.boxes, torch.tensor(truth))
        torch.testing.assert_close(found.scores, torch.tensor([0.6, 0.4]))
        assert found.classes.tolist() == [1, 0]
        assert method.boxes(images(1, 64), 0.05)[0].classes.tolist() == [1, 0, 2]
        assert method.boxes(images(1, 64), 0.99)[0].boxes.shape == (0, 4)

    def test_it_learns_to_find(self):
        """Squares and bars on grey, some two a photo."""
        x, boxes = drawn(8)
        network = self.network("test_resnet")
        method: Any = network.method
        optimizer = torch.optim.AdamW(network.module.parameters(), 2e-3, weight_decay=0.0)
        for _ in range(25):
            network.module(x, boxes[:, 0, 4].long(), boxes=boxes)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        method.eval()
        right = 0
        for own, found in zip(boxes, method.boxes(x, 0.2), strict=True):
            own = own[own.isfinite().all(1)]
            for box in own:
                of_class = found.boxes[found.classes == box[4]]
                right += bool((box_iou(box[None, :4], of_class) > 0.5).any())
        assert boxes.isfinite().all(2).sum() == 12 and right >= 10


def centres(maps: list[torch.Tensor]) -> list[tuple[float, float, float, int]]:
    """Every cell's middle and side, as shares, and the number of its level."""
    return [
        ((i + 0.5) / one.shape[3], (j + 0.5) / one.shape[2], 1 / one.shape[2], number)
        for number, one in enumerate(maps)
        for j in range(one.shape[2])
        for i in range(one.shape[3])
    ]


def responsible(x: float, y: float, size: float, level: int, boxes: torch.Tensor) -> int:
    """The box that a cell learns, by the paper's rules (three levels); -1: none."""
    best, smallest = -1, np.inf
    for number, (left, top, right, bottom, _) in enumerate(boxes.tolist()):
        sides = [x - left, y - top, right - x, bottom - y]
        low, high = (0 if level == 0 else 4 * size), (np.inf if level == 2 else 8 * size)
        near = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2)) < 1.5 * size
        area = (right - left) * (bottom - top)
        if min(sides) > 0 and near and low < max(sides) < high and area < smallest:
            best, smallest = number, area
    return best


def drawn(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Photos [N, 3, 64, 64] of a bright square (class 0) and, in every second, a dark bar (1); boxes [N, 2, 5]."""
    dice = np.random.default_rng(0)
    x, boxes = torch.zeros(count, 3, 64, 64), torch.full((count, 2, 5), NAN)
    for row in range(count):
        for number, (wide, high, light) in enumerate([(20, 20, 2.0), (28, 12, -2.0)][: 1 + row % 2]):
            left, top = int(dice.integers(0, 64 - wide)), int(dice.integers(0, 20)) + 32 * number
            top = min(top, 64 - high)
            x[row, :, top : top + high, left : left + wide] = light
            boxes[row, number] = torch.tensor([left, top, left + wide, top + high, 64 * number]) / 64
    return x, boxes


def test_cells():
    cells = cells_of([torch.zeros(1, 2, 2, 4)])[0] / SIDE
    torch.testing.assert_close(cells[5], torch.tensor([0.25, 0.5, 0.5, 1.0]))
    assert len(cells) == 8
