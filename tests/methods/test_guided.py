"""Attention-guided augmentation: WS-DAN and CAL by the common tests, and by the formulas of their papers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from method_tests import CLASSES, TrainedTests, images
from torch.nn.functional import cross_entropy, normalize

from fieldmark import methods
from fieldmark.losses.combine import build
from fieldmark.methods.base import MOST_ENTRIES, options_of
from fieldmark.methods.task import Batch, Task
from fieldmark.methods.wsdan import CROP, DROP, PAD, SECOND_LOOK, SECOND_PAD, WSDAN
from fieldmark.nn.crops import boxes_above, crop, enlarged

LABELS = torch.tensor([0, 2, 2, 3])


class GuidedTests(TrainedTests):
    """What both have in common."""

    steps = 20

    def step(self, method: Any, targets: torch.Tensor = LABELS, seed: int = 5) -> dict[str, torch.Tensor]:
        criterion = build("cross_entropy", classes=CLASSES, embedding=5)
        torch.manual_seed(seed)
        return method.training_step(Batch(images(len(LABELS), 64), targets), criterion)

    def test_its_descriptor_by_hand(self):
        """One part after the other: what the channels are on average under each map."""
        method: Any = self.make("test_efficientnet", 64)
        with torch.inference_mode():
            x = images(2, 64)
            last = method.backbone(x).last
            maps, x64 = method.maps(last).double().numpy(), last.double().numpy()
            f = np.array([[(a * x64[b]).mean((1, 2)) for a in maps[b]] for b in range(2)])
            f = (np.sign(f) * np.sqrt(np.abs(f))).reshape(2, -1)
            f *= method.options.scale / np.linalg.norm(f, axis=1, keepdims=True)
            got = method.features(x)
        assert np.abs(got["descriptor"].numpy() - f).max() < 0.02 * np.abs(f).max()
        np.testing.assert_allclose(got["attention"], maps, atol=1e-5)
        np.testing.assert_allclose(method.attention(x), maps.mean(1), atol=1e-5)

    def test_a_second_look(self):
        """The mean of the photo and of what its mean map marks, each looked at by itself."""
        method: Any = self.make("test_resnet", 64)
        x = images(3, 64)
        with torch.inference_mode():
            mean = enlarged(method.attention(x), 64)
            boxes = boxes_above(mean, method.attention(x).amax((1, 2)) * SECOND_LOOK, SECOND_PAD)
            alone = [method.describe(one) for one in (x, crop(x, boxes, 64))]
            assert not method.selects
            method.tta = True
            assert method.selects, "a threshold says where"
            torch.testing.assert_close(method.describe(x), (alone[0] + alone[1]) / 2)
            torch.testing.assert_close(method(x), (method.head(alone[0]) + method.head(alone[1])) / 2)

    def test_what_is_looked_at_closer_and_what_is_hidden(self):
        """Of one map: the box around what is above the drawn share of its peak, and the photo without it."""
        method: Any = self.make("test_resnet", 64)
        maps = torch.zeros(4, 1, 8, 8)
        maps[:, 0, 2:4, 3:7] = torch.tensor([1.0, 2.0, 3.0, 0.0])[:, None, None]  # the last one marks nothing
        maps[1, 0, 6, 6] = 1.1
        x = images(4, 64)
        torch.manual_seed(1)
        got = method.guided(x, maps)
        torch.manual_seed(1)
        torch.multinomial(torch.ones(4, 1), 2, replacement=True)
        closer, hidden = (low + (high - low) * torch.rand(4) for low, high in (CROP, DROP))
        large = enlarged(maps[:, 0], 64)
        for i in range(4):
            peak = float(maps[i].max())
            ys, xs = np.nonzero((large[i] > float(closer[i]) * peak).numpy())
            box = (
                [xs.min() / 64, ys.min() / 64, (xs.max() + 1) / 64, (ys.max() + 1) / 64]
                if peak
                else [0, 0, 1, 1]
            )
            box = [
                max(0.0, box[0] - PAD),
                max(0.0, box[1] - PAD),
                min(1.0, box[2] + PAD),
                min(1.0, box[3] + PAD),
            ]
            torch.testing.assert_close(
                got[i], crop(x[i : i + 1], torch.tensor([box]).float(), 64)[0], atol=1e-4, rtol=0
            )
            gone = large[i] > float(hidden[i]) * peak
            assert gone.any() == (i < 3)
            torch.testing.assert_close(got[4 + i], torch.where(gone, 0.0, x[i]))

    def test_centers_by_the_papers_code(self):
        """One photo of a class: c <- c + 0.05 (f - c / |c|). Those of other classes stay."""
        method: Any = self.make("test_resnet", 64).train()
        with torch.no_grad():
            method.centers.normal_()
        labels, before = torch.tensor([1, 3]), method.centers.clone()
        z = torch.randn(6, method.centers.shape[1])
        f = z[:2] / method.options.scale
        got = method.with_center({"loss": torch.tensor(2.0), "logits": z}, z, Batch(z, labels))
        truth = (f - normalize(before[labels])).square().sum() / 2
        torch.testing.assert_close(got["loss"], 2 + truth)
        torch.testing.assert_close(got["centers"], truth)
        assert torch.equal(method.centers, before), "they move after the step"
        method.stepped()
        expected = before.clone()
        expected[labels] += 0.05 * (f - normalize(before[labels]))
        torch.testing.assert_close(method.centers, expected)
        method.stepped()
        torch.testing.assert_close(method.centers, expected)

    def test_centers_know_nothing_of_what_was_no_step(self):
        method: Any = self.make("test_resnet", 64)
        self.step(method)
        method.stepped()
        assert (method.centers == 0).all(), "in eval mode"
        self.step(method.train())
        method.begin(0)
        method.stepped()
        assert (method.centers == 0).all(), "before the phase"
        self.step(method)
        method.dropped()
        method.stepped()
        assert (method.centers == 0).all(), "of a batch that was left out"
        self.step(method)
        method.stepped()
        assert (method.centers.norm(dim=1) > 0).tolist() == [True, False, True, True]

    def test_mixed_photos_have_no_center(self):
        method: Any = self.make("test_resnet", 64)
        targets = torch.nn.functional.one_hot(LABELS, CLASSES).float()
        whole, shares = self.step(method), self.step(method, targets)
        torch.testing.assert_close(shares["loss"], whole["loss"])
        targets[1:] = 0.25
        assert float(self.step(method, targets)["centers"]) == pytest.approx(1, abs=1e-4), "of the one left"
        targets[0] = 0.25
        got = self.step(method, targets)
        assert float(got["centers"]) == 0 and got["loss"].isfinite()

    def test_accuracy_is_of_the_photos(self):
        method: Any = self.make("test_resnet", 64)
        torch.testing.assert_close(self.step(method)["logits"], method(images(4, 64)))

    def test_maps_that_are_not_finite_reach_the_loop(self):
        """The loop then says which batch it was; drawing must not end the run before."""
        method: Any = self.make("test_resnet", 64)
        criterion = build("cross_entropy", classes=CLASSES, embedding=5)
        got = method.training_step(Batch(torch.full((2, 3, 64, 64), float("nan")), LABELS[:2]), criterion)
        assert not got["loss"].isfinite()


class TestWSDAN(GuidedTests):
    name = "wsdan"

    def test_its_loss_is_the_papers(self):
        """A third each for the photo, the crop and the photo with a part hidden, and the centre loss."""
        method: Any = self.make("test_resnet", 64)
        got, x = self.step(method), images(4, 64)
        torch.manual_seed(5)
        second = method.guided(x, method.maps(method.backbone(x).last))
        looks = [x, second[:4], second[4:]]
        truth = sum(cross_entropy(method(look), LABELS) for look in looks) / 3
        center = (method.describe(x) / method.options.scale).square().sum(1).mean()
        torch.testing.assert_close(got["loss"], truth + center)
        torch.testing.assert_close(got["centers"], center)

    @pytest.mark.parametrize("width, maps", [(320, 32), (600, 32), (100, 1024), (300, 1)])
    def test_wide_networks_fit_the_cache(self, width, maps):
        method = WSDAN.__new__(WSDAN)
        torch.nn.Module.__init__(method)
        method.task, method.scales, method.options = Task(3), [64], options_of(WSDAN, {"maps": maps})
        method.build(SimpleNamespace(width=width))  # type: ignore[arg-type]
        assert method.centers.shape[1] == maps * method.reduction.out_channels <= MOST_ENTRIES
        assert method.reduction.out_channels == min(width, MOST_ENTRIES // maps)

    def test_the_reduction_of_wide_maps_learns(self):
        self.settings = {"maps": 1024}
        network = self.network("test_resnet")
        method: Any = network.method
        assert method.reduction.basis.shape == (16, 96)
        self.total(network, *self.batch(4)).backward()
        assert method.reduction.basis.grad.abs().max() > 0
        assert network.depth()["method.reduction.basis"] == 0, "as slowly as the backbone"

    def test_settings(self):
        assert self.make("test_resnet", 64).options.maps == 32
        method = methods.get("wsdan")(self.make("test_resnet", 64).backbone, settings={"maps": 3, "scale": 2})
        z = method.describe(images(2, 64))
        assert z.shape[1] == 3 * method.backbone.width
        torch.testing.assert_close(z.norm(dim=1), torch.full((2,), 2.0), rtol=1e-3, atol=1e-3)


class TestCAL(GuidedTests):
    name = "cal"

    def test_it_answers_as_wsdan(self):
        mine, wsdan = self.make("test_resnet", 64), TestWSDAN().make("test_resnet", 64)
        wsdan.load_state_dict(mine.state_dict())
        torch.testing.assert_close(mine(images(3, 64)), wsdan(images(3, 64)))

    def test_its_loss_is_the_papers(self, monkeypatch):
        """CE(photo) / 3 + CE(effect of all looks) + 2 CE(crops and hidden) / 3 + centre; chance drawn by hand."""
        method: Any = self.make("test_resnet", 64)
        chance = torch.rand(12, method.options.maps, 2, 2)
        monkeypatch.setattr(torch, "rand_like", lambda maps: chance.reshape(maps.shape))
        got, x = self.step(method), images(4, 64)
        torch.manual_seed(5)
        looks = torch.cat([x, method.guided(x, method.maps(method.backbone(x).last))])
        logits, labels = method(looks), torch.cat([LABELS] * 3)
        plain = method.head(method.pooled(method.backbone(looks).last, 2 * chance))
        center = (method.describe(x) / method.options.scale).square().sum(1).mean()
        effect = cross_entropy(logits - plain, labels)
        truth = cross_entropy(logits[:4], LABELS) / 3 + cross_entropy(logits[4:], labels[4:]) * 2 / 3
        torch.testing.assert_close(got["loss"], truth + effect + center)
        torch.testing.assert_close(got["effect"], effect)
