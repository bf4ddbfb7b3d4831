"""Methods of the family "interpretable", by the common tests and by what is each one's own."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from method_tests import TASK, TrainedTests, backbone_of, images
from torch.nn.functional import cross_entropy

from fieldmark import methods
from fieldmark.methods.pipnet import align, diverse, recolored
from fieldmark.methods.task import Task
from fieldmark.runtime.errors import FieldmarkError


class TestProtoPNet(TrainedTests):
    name = "protopnet"
    settings: ClassVar[dict[str, Any]] = {"each": 3, "width": 16}

    def test_its_loss_by_hand(self):
        network = self.network("test_efficientnet")
        x, y = self.batch(4)
        method: Any = network.method
        losses = network.module(x, y)
        patches = method.reduce(method.backbone(x).last).flatten(2).transpose(1, 2)
        d = (patches[:, :, None] - method.prototypes.vectors).square().sum(3).amin(1)
        z = ((d + 1) / (d + 1e-4)).log()
        w = torch.full((4, 12), -0.5)
        for c in range(4):
            w[c, 3 * c : 3 * c + 3] = 1.0
        torch.testing.assert_close(method.head.weight, torch.nn.Parameter(w))
        near = torch.stack([d[b, 3 * y[b] : 3 * y[b] + 3].min() for b in range(4)]).mean()
        others = [torch.cat([d[b, : 3 * y[b]], d[b, 3 * y[b] + 3 :]]).min() for b in range(4)]
        total = cross_entropy(z @ w.T, y) + 0.8 * near - 0.08 * torch.stack(others).mean() + 1e-4 * 0.5 * 36
        torch.testing.assert_close(losses["loss"], total, rtol=1e-4, atol=1e-4)

    def test_phases(self):
        """First all but the last layer learns, then it alone; what was frozen by others stays so."""
        network = self.network("test_efficientnet")
        method: Any = network.method
        stem = next(method.backbone.parameters()).requires_grad_(False)

        def learns() -> set[str]:
            return {n.partition(".")[0] for n, p in method.named_parameters() if p.requires_grad}

        method.begin(0)
        assert learns() == {"backbone", "reduce", "prototypes"}
        method.begin(0)  # a killed run goes on, or a second phase with the same layers
        assert learns() == {"backbone", "reduce", "prototypes"}
        method.begin(1)
        assert learns() == {"head"}
        method.begin(0)
        assert learns() == {"backbone", "reduce", "prototypes"} and not stem.requires_grad

    def test_prototypes_are_put_on_patches(self):
        network = self.network("test_efficientnet")
        method: Any = network.method
        x, y = self.batch(8)

        def photos():
            return iter([(x[:5], y[:5]), (x[5:], y[5:])])

        method.prepare(0, photos)
        first = method.prototypes.vectors.detach().clone()
        method.prepare(0, photos)
        assert torch.equal(method.prototypes.vectors, first), "once is enough"
        with torch.no_grad():
            method.prototypes.vectors += 0.01 * torch.randn_like(first)
        method.prepare(1, photos)
        with torch.inference_mode():
            patches = method.reduce(method.backbone(x).last)
            height, width = patches.shape[2:]
            for p, (photo, down, across) in enumerate(method.prototypes.place.tolist()):
                assert y[int(photo)] == p // 3
                patch = patches[int(photo), :, int(down * height), int(across * width)]
                torch.testing.assert_close(method.prototypes.vectors[p], patch, rtol=1e-4, atol=1e-5)
            z = method.describe(x)
        assert z.amax(0).min() > 9, "each prototype is in some photo, as it is"

    def test_its_patches_are_where_the_prototypes_were_put(self):
        method: Any = self.network("test_efficientnet").method
        x, y = self.batch(8)
        method.prepare(0, lambda: iter([(x, y)]))
        assert method.patches(list) is None, "they move until the last layer learns"
        method.prepare(1, lambda: iter([(x, y)]))
        found = method.patches(list)
        with torch.inference_mode():
            maps = method.reduce(method.backbone(x).last)
        height, width = maps.shape[2:]
        assert found.side == (1 / height, 1 / width) and found.prototype.tolist() == list(range(12))
        for number, photo, (down, across) in zip(
            found.prototype, found.photo, found.centre.tolist(), strict=True
        ):
            patch = maps[photo, :, int(down * height), int(across * width)]
            torch.testing.assert_close(method.prototypes.patches[number], patch, rtol=1e-4, atol=1e-5)

    def test_attention_is_of_the_answers_prototypes(self):
        method: Any = self.make("test_resnet", 64)
        x = images(2, 64)
        with torch.inference_mode():
            answer = method(x).argmax(1)
            d = method.distances(method.backbone(x))
            near = ((d + 1) / (d + 1e-4)).log()
            expected = [near[b, 3 * answer[b] : 3 * answer[b] + 3].sum(0) for b in range(2)]
        torch.testing.assert_close(method.attention(x), torch.stack(expected))

    def test_many_classes(self):
        backbone = backbone_of("test_resnet", 64)
        make = methods.get("protopnet")
        assert make(backbone, (), Task(5000), {"width": 2}).widths == [15000], "three of each"
        with pytest.raises(FieldmarkError, match="16384 prototypes, too few for 20000 classes") as caught:
            make(backbone, (), Task(20_000))
        assert "\n" not in str(caught.value)


class TestPIPNet(TrainedTests):
    name = "pipnet"
    settings: ClassVar[dict[str, Any]] = {"prototypes": 24}

    def test_align_by_hand(self):
        one, two = (
            torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(s)).softmax(1) for s in (0, 1)
        )
        terms = [
            -torch.log(one[b, :, i, j] @ two[b, :, i, j])
            for b in range(2)
            for i in range(3)
            for j in range(4)
        ]
        torch.testing.assert_close(align(one, two), torch.stack(terms).mean())
        sure = torch.nn.functional.one_hot(torch.tensor([[1, 2]]), 4).float().transpose(1, 2)[..., None]
        assert abs(float(align(sure, sure))) < 1e-6, "alike and sure costs nothing"

    def test_diverse_by_hand(self):
        z = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
        expected = sum(-float(torch.log(torch.tanh(z[:, d].sum()))) for d in range(4)) / 4
        assert float(diverse(z)) == pytest.approx(expected, rel=1e-5)
        z[:, 1] = 0
        assert diverse(z) > 3 and diverse(z).isfinite(), "a prototype that is nowhere costs much"

    def test_views_differ_in_colour_alone(self):
        x = images(2, 8)
        torch.manual_seed(0)
        y = recolored(x, 0.5)
        for photo in range(2):
            for channel in range(3):
                a, b = x[photo, channel].flatten(), y[photo, channel].flatten()
                assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.999
                assert 0.5 <= b.std() / a.std() <= 1.5
        torch.testing.assert_close(recolored(x, 0.0), x)

    def test_its_loss_by_hand(self):
        network = self.network("test_efficientnet")
        x, y = self.batch(4)
        method: Any = network.method
        for progress, alone in ((0.06, False), (0.06, True), (0.5, True)):
            method.backbone.requires_grad_(not alone)
            torch.manual_seed(7)
            losses = network.module(x, y, progress=progress)
            torch.manual_seed(7)
            one, two = (method.presence(method.backbone(recolored(x, 0.3))) for _ in range(2))
            z = [view.flatten(2).amax(2) for view in (one, two)]
            classes = sum(cross_entropy(torch.log(1 + method.head(16 * v) ** 2), y) for v in z) / 2
            even = (diverse(z[0]) + diverse(z[1])) / 2
            total = 0.2 * align(one, two) + 5 * even
            if progress > 0.3 or not alone:
                total = 5 * align(one, two) + 2 * even + 2 * classes
            torch.testing.assert_close(losses["loss"], total)

    def test_weights_are_never_negative(self):
        method: Any = self.make("test_resnet", 64)
        assert method.head.weight.min() > 0
        with torch.no_grad():
            method.head.weight[0] = -1.0
            method.head.bias[1] = -1.0
            before = method.head.weight.clone()
        method.stepped()
        torch.testing.assert_close(method.head.weight, torch.nn.Parameter((before - 6e-5).clamp_min(0)))
        assert method.head.bias.min() == 0
        assert method(images(3, 64)).min() >= 0

    def test_weights_do_not_shrink_before_classes_matter(self):
        network = self.network("test_efficientnet")
        (x, y), method = self.batch(4), network.method
        before = method.head.weight.clone()
        method.backbone.requires_grad_(False)
        for progress, shrinks in ((0.06, False), (0.5, True)):
            network.module(x, y, progress=progress)
            method.stepped()
            expected = (before - 6e-5).clamp_min(0) if shrinks else before
            torch.testing.assert_close(method.head.weight, torch.nn.Parameter(expected))

    def test_faint_prototypes_count_nothing_in_answers(self):
        method: Any = methods.get("pipnet")(backbone_of("test_resnet", 64), (), TASK, {"least": 0.5})
        with torch.inference_mode():
            features = method.backbone(images(3, 64))
            most = method.presence(features).amax((2, 3))
            (answered,) = method.parts(features)
        torch.testing.assert_close(answered, 16 * torch.where(most < 0.5, 0.0, most))
        assert 0 < (most < 0.5).sum() < most.numel()

    def test_where_each_prototype_is(self):
        method: Any = self.make("test_resnet", 64)
        with torch.inference_mode():
            features = method.features(images(2, 64))
            torch.testing.assert_close(features["attention"].sum(1), torch.ones(2, 2, 2))
            seen = features["attention"].amax((2, 3))
        torch.testing.assert_close(features["descriptor"], 16 * torch.where(seen < 0.1, 0.0, seen))

    def test_its_patches_are_where_prototypes_are_most_present(self):
        made = methods.get("pipnet")(backbone_of("test_resnet", 64), (), TASK, {"least": 0.2})
        method: Any = made.eval()
        x, y = images(7, 64), torch.zeros(7, dtype=torch.long)
        found = method.patches(lambda: iter([(x[:4], y[:4]), (x[4:], y[4:])]))
        with torch.inference_mode():
            seen = method.presence(method.backbone(x))
        height, width = seen.shape[2:]
        expected = set()
        for d in range(seen.shape[1]):
            most = sorted(((float(seen[b, d].max()), b) for b in range(7)), reverse=True)[:3]
            for value, b in most:
                if value >= 0.2:
                    place = int(seen[b, d].argmax())
                    expected.add((d, b, place // width, place % width))
        centre = (found.centre * torch.tensor([height, width])).floor().int().tolist()
        rows = zip(found.prototype.tolist(), found.photo.tolist(), centre, strict=True)
        assert {(d, b, *place) for d, b, place in rows} == expected and expected
