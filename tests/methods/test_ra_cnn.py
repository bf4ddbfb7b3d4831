"""RA-CNN: the common tests, scales and losses by hand, and that it zooms to what makes it surer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from by_hand import cross_entropies, unit
from method_tests import CLASSES, TrainedTests, images
from torch import nn
from torch.nn.functional import cross_entropy

from fieldmark.methods import ra_cnn
from fieldmark.methods.task import Batch, Task
from fieldmark.nn.backbone import Features


class TestRACNN(TrainedTests):
    name = "ra_cnn"
    steps = 20

    def test_scales_by_hand(self):
        method: Any = self.make("test_resnet", 64)
        x = images(2, 64)
        with torch.inference_mode():
            looked, box = method.look(x), torch.tensor([[0.0, 0, 1, 1]] * 2)
            photo, z = x, []
            for number in range(3):
                features = method.backbone(photo)
                z.append(unit(features.embedding))
                torch.testing.assert_close(looked.boxes[number], box)
                if number < 2:
                    square = method.proposals[number](features.last)
                    side = box[:, 2:] - box[:, :2]
                    box = torch.cat([box[:, :2] + side * square[:, :2], box[:, :2] + side * square[:, 2:]], 1)
                    photo = method.closer(x, box)
            torch.testing.assert_close(method.describe(x), torch.cat(z, 1), rtol=1e-4, atol=1e-5)

    def test_squares_lie_in_the_photo(self):
        proposal = ra_cnn.Proposal(6, 16)
        x = torch.randn(20, 6, 5, 5, generator=torch.Generator().manual_seed(0))
        for size in (0.0, 3.0, 300.0):
            nn.init.normal_(proposal.last.weight, std=size)
            left, top, right, bottom = proposal(x).detach().unbind(1)
            torch.testing.assert_close(right - left, bottom - top)
            assert torch.stack([left, top]).min() > -1e-5 and torch.stack([right, bottom]).max() < 1 + 1e-5
            assert (right - left).min() > ra_cnn.LEAST - 1e-5
            if not size:
                torch.testing.assert_close(proposal(x[:1]), torch.tensor([[0.25, 0.25, 0.75, 0.75]]))

    def test_classifier_and_proposals_learn_in_turns(self):
        method: Any = self.make("test_resnet", 64, fresh=True)
        x, y = images(3, 64), torch.tensor([0, 1, 3])
        for phase, turn in ((0, 0), (0, 1), (1, 0), (1, 1)):
            method.begin(phase)
            method.zero_grad()
            method.training_step(Batch(x, y, turn=turn), cross_entropies())["loss"].backward()
            reached = {n.split(".")[0] for n, p in method.named_parameters() if p.grad is not None}
            assert reached == ({"backbone", "head"}, {"proposals"})[turn], (phase, turn)

    def test_its_losses_by_hand(self):
        method: Any = self.make("test_resnet", 64)
        x, y = images(3, 64), torch.tensor([0, 1, 3])
        with torch.no_grad():
            looked = method.look(x)
            f = [3 * unit(part) for part in looked.parts]
            weights = method.head.weight.chunk(3, 1)
            logits = [a @ w.T + method.head.bias for a, w in zip(f, weights, strict=True)]
            together = torch.stack(logits).mean(0)
            each = [cross_entropy(one, y) for one in (*logits, together)]
            first = method.training_step(Batch(x, y), cross_entropies())
            torch.testing.assert_close(first["loss"], torch.stack(each).sum())
            torch.testing.assert_close(first["logits"], together)
            method.begin(1)
            sure = [one.softmax(1)[torch.arange(3), y].tolist() for one in logits]
            expected = sum(
                max(0.0, a - b + 0.05) for s in (0, 1) for a, b in zip(sure[s], sure[s + 1], strict=True)
            )
            for targets in (y, nn.functional.one_hot(y, CLASSES).float()):
                told = method.training_step(Batch(x, targets, turn=1), cross_entropies())
                assert float(told["loss"]) == pytest.approx(expected / 3, rel=1e-4)

    def test_the_busiest_square(self):
        maps = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(0))
        for one, box in zip(maps, ra_cnn.busiest(maps), strict=True):
            places = {(y, x): float(one[y : y + 3, x : x + 3].sum()) for y in range(4) for x in range(4)}
            y, x = max(places, key=lambda place: places[place])
            torch.testing.assert_close(box, torch.tensor([x, y, x + 3, y + 3]) / 6)
        assert torch.equal(ra_cnn.busiest(torch.ones(1, 1, 1)), torch.tensor([[0.25, 0.25, 0.75, 0.75]]))

    def test_it_zooms_to_what_makes_it_surer(self):
        """A network that is the surer of class 1 the more of its view is bright: squares go to the bright place,
        and shrink."""
        photos = torch.zeros(2, 3, 32, 32)
        photos[0, :, 2:12, 3:13] = photos[1, :, 18:29, 16:27] = 1.0
        torch.manual_seed(0)
        method: Any = zooming()
        method.begin(1)
        method.head.weight.data.zero_()
        for scale in range(3):
            method.head.weight.data[:, 2 * scale] = torch.tensor([-1.0, 1.0])
        optimizer = torch.optim.Adam(method.proposals.parameters(), 3e-3)

        def bright() -> torch.Tensor:
            """Share of each view that is bright, scale by scale: [3, 2]."""
            with torch.no_grad():
                return torch.stack([one.embedding[:, 0] for one in method.look(photos).features])

        before = bright()
        for _ in range(80):
            told = method.training_step(Batch(photos, torch.tensor([1, 1]), turn=1), cross_entropies())
            told["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        after = bright()
        assert (after[1:] > 1.2 * after[:-1]).all() and (after[1:] > 1.5 * before[1:]).all()
        assert 1 / 3 < float(told["side_2"]) < 0.6 and float(told["side_3"]) < float(told["side_2"])


def zooming() -> Any:
    """RA-CNN over a stand-in that sees how bright a view is."""

    class Bright(nn.Module):
        size, width, channels, strides, embedding, fixed = 32, 3, [3], [4], 2, False

        def forward(self, x: torch.Tensor) -> Features:
            maps = nn.functional.avg_pool2d(x, 4)
            share = x.mean((1, 2, 3))
            return Features([maps], torch.stack([share, torch.full_like(share, 0.5)], 1))

    stand_in: Any = Bright()
    stand_in.source = SimpleNamespace(architecture="bright")
    method = ra_cnn.RACNN(stand_in, (), Task(2), {"hidden": 64, "scale": 10})
    method.add_head(2, 3)
    return method
