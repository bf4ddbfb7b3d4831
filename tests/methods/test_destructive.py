"""Progressive and destructive methods by the common tests, and by the formulas of their papers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from method_tests import CLASSES, TrainedTests, images
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

from fieldmark.losses.combine import build
from fieldmark.methods.base import options_of
from fieldmark.methods.pmg import PIECES, PMG, Norm
from fieldmark.methods.task import Batch
from fieldmark.nn.jigsaw import near_order, shuffled
from fieldmark.runtime.errors import FieldmarkError

LABELS = torch.tensor([0, 2, 2, 3])


def step(method: Any, turn: int = 0, photos: int = 4) -> dict[str, torch.Tensor]:
    criterion = build("cross_entropy", classes=CLASSES, embedding=5)
    torch.manual_seed(5)
    return method.training_step(Batch(images(4, 64)[:photos], LABELS[:photos], turn=turn), criterion)


def seen_by_the_backbone(method: Any, turn: int = 0) -> torch.Tensor:
    caught: list[torch.Tensor] = []
    hook = method.backbone.register_forward_pre_hook(lambda _, x: caught.append(x[0]))
    step(method, turn)
    hook.remove()
    return caught[0]


def pieces_of(image: torch.Tensor, n: int) -> list[tuple[float, ...]]:
    p = image.shape[1] // n
    cells = [image[:, y * p : y * p + p, x * p : x * p + p] for y in range(n) for x in range(n)]
    return [tuple(cell.flatten().tolist()) for cell in cells]


class TestPMG(TrainedTests):
    name = "pmg"
    settings: ClassVar[dict[str, Any]] = {"width": 16}
    steps = 20

    def test_the_answer_is_the_mean_of_four_heads(self):
        method: Any = self.make("test_efficientnet", 64)
        with torch.inference_mode():
            x = images(3, 64)
            features = method.backbone(x)
            maps = [features.maps[-3], features.maps[-2], features.last]
            pooled = [stage(m).flatten(2).max(2).values for stage, m in zip(method.stages, maps, strict=True)]
            entries = [*pooled, torch.cat(pooled, 1)]
            weights = method.head.weight.split(16, dim=1)
            answers = [
                head(one) @ w.T + method.head.bias
                for head, one, w in zip(method.heads, entries, weights, strict=True)
            ]
            torch.testing.assert_close(method(x), sum(answers) / 4)
            for turn, answer in enumerate(answers):
                alone = method.head(method.alone(turn, features))
                torch.testing.assert_close(alone, answer)

    @pytest.mark.parametrize("turn", range(4))
    def test_a_turn_learns_its_stage_and_those_before(self, turn):
        method: Any = self.make("test_resnet", 64, fresh=True).train()
        step(method, turn)["loss"].backward()
        learned = {
            name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0
        }
        for number in range(4):
            assert any(n.startswith(f"heads.{number}.") for n in learned) == (number == turn)
        for number in range(3):
            assert any(n.startswith(f"stages.{number}.") for n in learned) == (turn in (number, 3))
            own = f"backbone.model.layer{number + 2}."
            assert any(n.startswith(own) for n in learned) == (turn >= number)
        reached = method.head.weight.grad.split(16, dim=1)
        assert [bool(g.abs().max() > 0) for g in reached] == [number == turn for number in range(4)]

    @pytest.mark.parametrize("turn", range(4))
    def test_photos_are_cut_into_ever_larger_pieces(self, turn):
        method, x, n = self.make("test_resnet", 64), images(4, 64), (8, 4, 2, 1)[turn]
        got = seen_by_the_backbone(method, turn)
        assert n == PIECES[turn] and torch.equal(got, x) == (n == 1)
        for photo, ours in zip(x, got, strict=True):
            assert sorted(pieces_of(photo, n)) == sorted(pieces_of(ours, n))
        if n > 2:  # each photo in its own way
            moved = [
                pieces_of(photo, n).index(pieces_of(ours, n)[0]) for photo, ours in zip(x, got, strict=True)
            ]
            assert len(set(moved)) > 1

    def test_the_whole_photo_weighs_twice(self):
        method = self.make("test_resnet", 64)
        for turn in range(4):
            got = step(method, turn)
            truth = cross_entropy(got["logits"], LABELS) * (2 if turn == 3 else 1)
            torch.testing.assert_close(got["loss"], truth)

    def test_all_norms_know_whole_photos(self):
        method: Any = self.make("test_resnet", 64, fresh=True).train()
        before = {n: b.clone() for n, b in method.named_buffers() if n.endswith("running_mean")}
        step(method, 3)
        own = [n for n in before if n.startswith(("heads.", "stages."))]
        assert len(own) == 4 * 2 + 3 * 2
        buffers = dict(method.named_buffers())
        assert all(not torch.equal(before[n], buffers[n]) for n in own)

    @pytest.mark.parametrize("turn", range(4))
    def test_one_photo_alone_trains(self, turn):
        method = self.make("test_resnet", 64, fresh=True).train()
        assert step(method, turn, photos=1)["loss"].isfinite()

    def test_norm_is_torchs(self):
        mine, theirs, x = Norm(5), torch.nn.BatchNorm1d(5), torch.randn(6, 5)
        torch.testing.assert_close(mine(x), theirs(x))
        torch.testing.assert_close(mine.running_var, theirs.running_var)
        torch.testing.assert_close(mine(x[:1]), theirs.eval()(x[:1]))
        torch.testing.assert_close(mine.eval()(x), theirs(x))

    def build(self, channels: list[int], width: int) -> PMG:
        method = PMG.__new__(PMG)
        torch.nn.Module.__init__(method)
        method.options = options_of(PMG, {})
        source = SimpleNamespace(architecture="small")
        method.build(SimpleNamespace(channels=channels, width=width, source=source))  # type: ignore[arg-type]
        return method

    def test_a_resnet50_has_the_papers_widths(self):
        method: Any = self.build([64, 256, 512, 1024, 2048], 2048)
        for stage, channels in zip(method.stages, (512, 1024, 2048), strict=True):
            assert stage[0].weight.shape == (512, channels, 1, 1) and stage[3].weight.shape == (
                1024,
                512,
                3,
                3,
            )
        assert [head[1].weight.shape for head in method.heads] == [(512, 1024)] * 3 + [(512, 3072)]

    def test_narrow_stages_have_narrow_layers(self):
        method: Any = self.build([16, 24, 40, 112, 320], 1280)
        assert [stage[0].out_channels for stage in method.stages] == [40, 112, 512]

    def test_too_few_stages(self):
        with pytest.raises(FieldmarkError, match="small has 2 stages and pmg needs three") as caught:
            self.build([8, 16], 16)
        assert "\n" not in str(caught.value)


class TestDCL(TrainedTests):
    name = "dcl"
    steps = 20

    def test_it_answers_as_plain(self):
        method = self.make("test_resnet", 64)
        with torch.inference_mode():
            pooled = method.backbone.model(images(2, 64))
            torch.testing.assert_close(
                method.describe(images(2, 64)), pooled / pooled.norm(dim=1, keepdim=True)
            )

    def test_its_loss_is_the_papers(self):
        """Both heads by hand, over photos and shuffled ones; targets of the location by a loop over the real order."""
        method: Any = self.make("test_resnet", 64)
        got, x = step(method), images(4, 64)
        torch.manual_seed(5)
        order = near_order(4, 7, 2.0)
        both = torch.cat([x, shuffled(x, order)])
        assert torch.equal(seen_by_the_backbone(method), both)
        features = method.backbone(both)
        labels = torch.cat([LABELS, LABELS])
        ce = cross_entropy(method(both), labels)
        adversary = cross_entropy(method.adversary(features.embedding), torch.tensor([0] * 4 + [1] * 4))
        found = adaptive_avg_pool2d(method.location(features.last), 7).tanh()
        away = []
        for photo, row in enumerate([list(range(49))] * 4 + order.tolist()):
            for place, patch in enumerate(row):
                here = found[photo, :, place // 7, place % 7]
                truth = torch.tensor([patch % 7, patch // 7]) * 2 / 7 + 1 / 7 - 1
                away += (here - truth).abs().tolist()
        location = sum(away) / len(away)
        assert float(got["location"]) == pytest.approx(location, rel=1e-4)
        torch.testing.assert_close(got["adversary"], adversary)
        torch.testing.assert_close(got["loss"], ce + adversary + location)
        torch.testing.assert_close(got["logits"], method(x))

    def test_weights_of_its_losses(self):
        self.settings = {"adversary": 0, "location": 0.5}
        method = self.make("test_resnet", 64)
        got = step(method)
        torch.testing.assert_close(got["loss"], got["cross_entropy"] + 0.5 * got["location"])

    def test_it_learns_where_pieces_are_from(self):
        """From features that hold their own place the location head finds it."""
        from fieldmark.nn.backbone import Features

        method: Any = self.make("test_resnet", 64, fresh=True)
        at = (torch.arange(14) + 0.5) / 7 - 1
        ramp = torch.stack([at.expand(14, 14), at[:, None].expand(14, 14)])

        class Places(torch.nn.Module):
            """Channels 0 and 1 of the map are the photo's own."""

            def forward(self, x: torch.Tensor) -> Features:
                last = torch.nn.functional.avg_pool2d(x[:, :2], 4)
                last = torch.nn.functional.pad(last, (0, 0, 0, 0, 0, method.location.in_channels - 2))
                return Features([last], torch.ones(len(x), method.adversary.in_features), last)

        method.backbone = Places()
        with torch.no_grad():
            method.location.bias.zero_()
            method.location.weight.zero_()
            method.location.weight[0, 0] = method.location.weight[1, 1] = 1.3  # tanh(1.3 x) is near x
        photos = torch.nn.functional.interpolate(ramp[None], 56, mode="bilinear", align_corners=False)
        photos = torch.cat([photos, photos[:, :1]], 1).expand(4, -1, -1, -1).contiguous()
        torch.manual_seed(0)
        criterion = build("cross_entropy", classes=CLASSES, embedding=5)
        got = method.training_step(Batch(photos, LABELS), criterion)
        assert float(got["location"]) < 0.08
