"""Parts and stages: the common tests, and what is each one's own against loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from by_hand import cross_entropies, unit
from method_tests import CLASSES, TrainedTests, images
from scipy.ndimage import label
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.ops import nms as reference_nms

from fieldmark.losses.combine import build
from fieldmark.methods import mmal, nts_net, two_stage
from fieldmark.methods.task import Batch
from fieldmark.nn.crops import covered, crop, enlarged
from fieldmark.nn.parts import activation, windows
from fieldmark.runtime.errors import UsageError


def seen_by(backbone: nn.Module) -> list[torch.Tensor]:
    """What the backbone is given from now on."""
    seen: list[torch.Tensor] = []
    backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    return seen


def around(mask: np.ndarray) -> list[float]:
    if not mask.any():
        return [0.0, 0.0, 1.0, 1.0]
    (h, w), (y, x) = mask.shape, np.nonzero(mask)
    return [x.min() / w, y.min() / h, (x.max() + 1) / w, (y.max() + 1) / h]


def biggest(mask: np.ndarray) -> np.ndarray:
    labels, count = label(mask, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return labels == 1 + np.flatnonzero(sizes == sizes.max())[-1] if count else mask


class PickingTests(TrainedTests):
    """Of methods that pick places: a step can be so long that others are picked."""

    def test_a_step_lowers_the_loss(self, backbone):
        """By what the gradient says, for a step so short that all picks stay."""
        network = self.network(backbone)
        x, y = self.batch(8)
        before = self.total(network, x, y)
        before.backward()
        with torch.no_grad():
            moved = [p for p in network.method.parameters() if p.grad is not None]
            size = sum(float(p.grad.square().sum()) for p in moved if p.grad is not None)
            for p in moved:
                if p.grad is not None:
                    p -= p.grad * 2e-5 * before / size
            change = float(self.total(network, x, y) - before)
        assert change == pytest.approx(-2e-5 * float(before.detach()), rel=0.3)


class TestTwoStage(PickingTests):
    name = "two_stage"
    steps = 15

    def total(self, network: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """With boxes, so that no crop jumps to another cell."""
        boxes = torch.tensor([[0.2, 0.1, 0.9, 0.7, 0.0]]).repeat(len(x), 1, 1)
        return network.module(x, y, turn=0, progress=0.5, boxes=boxes)["loss"]

    @pytest.mark.parametrize("settings", [{}, {"mask": "true", "pad": 0.0}])
    def test_both_stages_by_hand(self, settings):
        method: Any = self._with(settings)
        x, pad = images(4, 96), method.options.pad
        seen = seen_by(method.backbone)
        with torch.no_grad():
            looked = method.look(x)
            photo = method.backbone(x)
            rows = method.locator.weight[method.locator(photo.last.mean((2, 3))).argmax(1)]
            cam = torch.einsum("bc,bchw->bhw", rows, photo.last)
            torch.testing.assert_close(looked.map, cam, rtol=1e-4, atol=1e-5)
            for row, one in enumerate(cam.numpy()):
                mask = biggest(one > one.mean() + two_stage.ABOVE * abs(one).max())
                sides = np.array(around(mask)) + pad * np.array([-1, -1, 1, 1])
                box = torch.from_numpy(sides.clip(0, 1)).float()[None]
                torch.testing.assert_close(looked.boxes[row : row + 1], box)
                left = x[row : row + 1]
                if settings:
                    left = left * enlarged(torch.from_numpy(mask)[None].float(), 96)[:, None]
                torch.testing.assert_close(seen[1][row : row + 1], crop(left, box, 96), rtol=1e-4, atol=1e-4)
            halves = [unit(photo.embedding), unit(method.backbone(seen[1]).embedding)]
            torch.testing.assert_close(looked.z, torch.cat(halves, 1) * 1.5, rtol=1e-4, atol=1e-5)

    def _with(self, settings: dict[str, Any]) -> Any:
        self.settings = settings  # type: ignore[misc]
        return self.make("test_resnet", 96, fresh=True)

    def test_known_boxes_are_taken(self):
        method: Any = self._with({"pad": 0.0, "mask": True})
        x, boxes = images(3, 96), torch.tensor([[0.1, 0.2, 0.6, 0.7], [torch.nan] * 4, [0.0, 0.5, 0.5, 1.0]])
        seen = seen_by(method.backbone)
        with torch.no_grad():
            found, taken = method.look(x).boxes, method.look(x, boxes=boxes).boxes
        assert torch.equal(taken[[0, 2]], boxes[[0, 2]]) and torch.equal(taken[1], found[1])
        marked = two_stage.marks(method.look(x, boxes=boxes).map).float()
        for row in (
            0,
            2,
        ):  # the box without what the map does not mark there, or all of it where it marks nothing
            box = boxes[row : row + 1]
            own = covered(box, 96, 96)
            inside = own * enlarged(marked[row : row + 1], 96)
            inside = inside if inside.max() > 0.5 else own
            torch.testing.assert_close(
                seen[3][row : row + 1],
                crop(x[row : row + 1] * inside[:, None], box, 96),
                rtol=1e-4,
                atol=1e-4,
            )

    def test_the_map_of_the_true_class_in_training(self):
        method: Any = self._with({})
        x = images(2, 96)
        with torch.no_grad():
            one, two = (method.look(x, torch.full((2,), number)).map for number in (0, 1))
        assert (one - two).abs().max() > 1e-4

    def test_several_boxes_are_looked_at_together(self, monkeypatch):
        """The crop lies around all of them."""
        method: Any = self._with({"pad": 0.0})
        x, seen = images(2, 96), seen_by(method.backbone)
        boxes = torch.full((2, 3, 5), torch.nan)
        boxes[0, :2] = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0], [0.2, 0.3, 0.6, 0.7, 1]])
        boxes[1, 0] = torch.tensor([0.0, 0.5, 0.5, 1.0, 2])
        criterion = build("cross_entropy", classes=CLASSES, embedding=5)
        method.training_step(Batch(x, torch.tensor([0, 1]), boxes=boxes), criterion)
        around_all = torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.0, 0.5, 0.5, 1.0]])
        torch.testing.assert_close(seen[1], crop(x, around_all, 96))

    def test_maps_are_taught_by_correlation(self):
        """With the cells that lie in any of a photo's boxes."""
        nan = [torch.nan] * 4
        boxes = torch.tensor(
            [[[0.1, 0.25, 0.4, 0.9], [0.3, 0.0, 0.6, 0.6]], [[0.5, 0, 1, 0.5], nan], [nan, nan]]
        )
        maps, inside = torch.rand(3, 5, 6), torch.zeros(3, 5, 6)
        for row, j, i in np.ndindex(2, 5, 6):
            for left, top, right, bottom in boxes[row][boxes[row].isfinite().all(1)].tolist():
                across = max(0.0, min(right * 6, i + 1) - max(left * 6, i))
                down = max(0.0, min(bottom * 5, j + 1) - max(top * 5, j))
                inside[row, j, i] = max(float(inside[row, j, i]), across * down)
        expected = [1 - np.corrcoef(maps[row].flatten(), inside[row].flatten())[0, 1] for row in range(2)]
        assert float(two_stage.apart(maps, boxes)) == pytest.approx(np.mean(expected), abs=1e-5)
        assert float(two_stage.apart(2 * inside + 3, boxes)) == pytest.approx(0, abs=1e-5)
        assert float(two_stage.apart(-inside, boxes)) == pytest.approx(2, abs=1e-5)
        for nothing in (boxes[2:], torch.tensor([[[0.0, 0, 1, 1]]])):
            assert float(two_stage.apart(maps[:1], nothing)) == 0

    def test_a_constant_map_marks_nothing(self):
        assert not two_stage.marks(torch.full((2, 5, 5), 0.7) + 1e-7 * torch.rand(2, 5, 5)).any()


class TestNTSNet(PickingTests):
    name = "nts_net"
    steps = 12

    def test_every_weight_of_its_own_learns(self, backbone):
        """With so many proposals that some come from each level."""
        self.settings = {"proposals": 32}  # type: ignore[misc]
        super().test_every_weight_of_its_own_learns(backbone)

    def test_parts_by_hand(self):
        method: Any = self.make("test_resnet", 96)
        x = images(2, 96)
        with torch.inference_mode():
            photo = method.backbone(x)
            scores, boxes = method.navigator(photo.last)
            z = [unit(photo.embedding)]
            best = [reference_nms(boxes, one, 0.25)[:4] for one in scores]
            assert all(len(one) == 4 for one in best)
            for k in range(4):
                at = torch.stack([boxes[one[k]] for one in best])
                z.append(unit(method.backbone(crop(x, at, 64)).embedding))  # half of it, in whole strides
            torch.testing.assert_close(method.describe(x), torch.cat(z, 1) * 0.6, rtol=1e-4, atol=1e-5)

    def test_the_navigator_learns_by_rank_alone(self):
        method: Any = self.make("test_resnet", 64, fresh=True)
        looked = method.look(images(2, 64), 6)
        looked.scores.sum().backward(retain_graph=True)
        assert all(p.grad is None for p in method.backbone.parameters())
        assert any(p.grad is not None for p in method.navigator.parameters())
        method.zero_grad()
        method.together(looked).sum().backward()
        assert all(p.grad is None for p in method.navigator.parameters())

    def test_ranking_by_a_loop(self):
        dice = torch.Generator().manual_seed(0)
        scores, unsure = torch.randn(3, 5, generator=dice), torch.rand(3, 5, generator=dice)
        unsure[0, 1] = unsure[0, 2]  # equal ones are not ranked
        total = 0.0
        for s, loss in zip(scores.tolist(), unsure.tolist(), strict=True):
            total += sum(max(0.0, 1 - s[i] + s[j]) for i in range(5) for j in range(5) if loss[i] < loss[j])
        assert float(nts_net.ranking(scores, unsure)) == pytest.approx(total / 3, rel=1e-5)

    def test_its_losses_by_hand(self):
        method: Any = self.make("test_resnet", 64)
        x, y = images(3, 64), torch.tensor([0, 1, 3])
        with torch.no_grad():
            told = method.training_step(Batch(x, y), cross_entropies())
            looked = method.look(x, 6)
            whole = cross_entropy(method.head(method.together(looked)), y)
            raw = cross_entropy(method.raw(3 * unit(looked.photo)), y)
            logits = torch.stack([method.teacher(3 * unit(looked.parts[:, k])) for k in range(6)], 1)
            each = torch.stack([cross_entropy(logits[:, k], y, reduction="none") for k in range(6)], 1)
            rank = nts_net.ranking(looked.scores, each)
        torch.testing.assert_close(told["loss"], whole + raw + each.mean() + rank)
        torch.testing.assert_close([told["raw"], told["parts"], told["rank"]], [raw, each.mean(), rank])

    def test_shares_of_classes_are_targets_too(self):
        method: Any = self.make("test_resnet", 64)
        y = torch.tensor([0, 1, 3])
        hard, soft = (
            method.training_step(Batch(images(3, 64), t), cross_entropies())["loss"]
            for t in (y, nn.functional.one_hot(y, CLASSES).float())
        )
        torch.testing.assert_close(hard, soft)

    def test_boxes_are_the_papers(self):
        """At 448 px: 6 a place on 14 x 14 and 7 x 7 places, 9 on 4 x 4."""
        scores, boxes = nts_net.Navigator(8)(torch.rand(2, 8, 14, 14))
        assert scores.shape == (2, 6 * 196 + 6 * 49 + 9 * 16) and boxes.shape == (1614, 4)
        sides = [round(448 * (h * w) ** 0.5) for level in range(3) for h, w in nts_net.shapes(level)]
        assert sorted(set(sides)) == [60, 76, 121, 152, 192, 242, 305]

    def test_fewer_proposals_than_parts(self):
        self.settings = {"parts": 9}  # type: ignore[misc]
        with pytest.raises(UsageError, match="fewer proposals") as caught:
            self.make("test_resnet", 64)
        assert "\n" not in str(caught.value)


class TestMMAL(PickingTests):
    name = "mmal"
    steps = 20

    def test_it_adds_no_layer(self):
        method = self.make("test_resnet", 64)
        own = {n.split(".")[0] for n, _ in method.named_parameters()}
        assert own == {"backbone", "head", "projection"}

    def test_the_thing_by_hand(self):
        last = torch.randn(30, 4, 7, 7, generator=torch.Generator().manual_seed(0))
        before = torch.randn(30, 3, 14, 14, generator=torch.Generator().manual_seed(1))
        last[0], before[1] = 0.3, 0.3  # nothing stands out
        for row, box in enumerate(mmal.thing(last, before).tolist()):
            one = last[row].abs().sum(0).numpy()
            two = enlarged(before[row].abs().sum(0)[None], 7)[0].numpy()
            level = 1 + mmal.ABOVE
            mask = biggest(one > one.mean() * level) & (two > two.mean() * level)
            assert box == pytest.approx(around(mask))
            assert (box == [0, 0, 1, 1]) >= (row < 2)

    def test_windows_by_hand(self):
        x = torch.rand(2, 3, 14, 14, generator=torch.Generator().manual_seed(0))
        found = mmal.parts_of(x, 0.25)
        assert found.shape == (2, 7, 4)
        for row in range(2):
            start = 0
            for shapes, keep in zip(mmal.GROUPS, mmal.KEPT, strict=True):
                several = [windows(activation(x[row : row + 1]), h, w) for h, w in shapes]
                boxes, scores = torch.cat([b for b, _ in several]), torch.cat([s[0] for _, s in several])
                best = boxes[reference_nms(boxes, scores, 0.25)[:keep]]
                torch.testing.assert_close(found[row, start : start + len(best)], best)
                start += keep
        assert mmal.parts_of(x[:, :, :2, :2], 0.25).shape == (2, 7, 4), "small maps have small windows"

    @pytest.mark.parametrize("backbone, before", [("test_resnet", -2), ("test_efficientnet", -1)])
    def test_answers_of_crop_and_photo(self, backbone, before):
        method: Any = self.make(backbone, 96)
        x = images(2, 96)
        with torch.inference_mode():
            features = method.backbone(x)
            boxes = mmal.thing(features.last, features.maps[before])
            one = 3 * unit(features.embedding)
            two = 3 * unit(method.backbone(crop(x, boxes, 96)).embedding)
            torch.testing.assert_close(method.describe(x), two, rtol=1e-4, atol=1e-5)
            method.tta = True
            torch.testing.assert_close(method.describe(x), (one + two) / 2, rtol=1e-4, atol=1e-5)

    def test_one_classifier_learns_from_all(self):
        method: Any = self.make("test_resnet", 64, fresh=True)
        seen = seen_by(method.backbone)
        x, y = images(3, 64), torch.tensor([0, 1, 3])
        told = method.training_step(Batch(x, y), cross_entropies())
        assert [len(one) for one in seen] == [3, 3, 21] and seen[2].shape[-1] == 32
        with torch.no_grad():
            logits = [method.head(method.read(method.backbone(one))) for one in seen[:3]]
        each = [cross_entropy(one, y.repeat_interleave(len(one) // 3)) for one in logits]
        torch.testing.assert_close(told["loss"].detach(), torch.stack(each).sum())
        torch.testing.assert_close(told["logits"].detach(), logits[1])
