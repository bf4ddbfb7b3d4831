"""Methods of the family "transformers", by the common tests and by what is each one's own."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from method_tests import TASK, TrainedTests, backbone_of, images
from torch.nn.functional import cross_entropy

from fieldmark import methods
from fieldmark.methods.herbs import refinement, temperature
from fieldmark.methods.transfg import contrast
from fieldmark.runtime.errors import FieldmarkError


class TestTransFG(TrainedTests):
    name = "transfg"
    backbones = ("test_vit",)

    def test_its_answer_by_hand(self):
        """Block by block with attention written out, one photo at a time."""
        method: Any = self.make("test_vit", 64)
        model, x = method.backbone.model, images(2, 64)
        maps = method.features(x)["attention"]
        assert maps.shape == (2, 2, 4, 4)
        for number, photo in enumerate(x):
            tokens = model.norm_pre(model._pos_embed(model.patch_embed(photo[None])))
            heads = model.blocks[0].attn.num_heads
            product = [torch.eye(17)] * heads
            for block in model.blocks[:-1]:
                qkv = block.attn.qkv(block.norm1(tokens))[0].reshape(17, 3, heads, -1)
                for h in range(heads):
                    q, k = qkv[:, 0, h], qkv[:, 1, h]
                    product[h] = (q @ k.T / q.shape[1] ** 0.5).softmax(1) @ product[h]
                tokens = block(tokens)
            kept = [0] + [1 + int(p[0, 1:].argmax()) for p in product]
            z = model.norm(model.blocks[-1](tokens[:, kept]))[0, 0]
            torch.testing.assert_close(method.describe(x)[number], z, rtol=1e-4, atol=1e-5)
            rolled = torch.stack([p[0, 1:].reshape(4, 4) for p in product])
            torch.testing.assert_close(maps[number], rolled)
            torch.testing.assert_close(method.attention(x)[number], rolled.mean(0))

    def test_it_sees_the_selected_patches_alone(self):
        """Without selection the answer is another; with all patches selected it would be the backbone's."""
        method: Any = self.make("test_vit", 64)
        x = images(2, 64)
        with torch.inference_mode():
            assert (method.describe(x) - method.backbone(x).embedding).abs().max() > 1e-3
            tokens, row = method._rolled(x)
            one_each = torch.stack([torch.eye(16)[:, None].expand(-1, 2, -1)[i] for i in (3, 7)])
            by_hand = method._classes(tokens, one_each)
            kept = torch.stack([t[[0, 4, 4]] if i == 0 else t[[0, 8, 8]] for i, t in enumerate(tokens)])
            model = method.backbone.model
            torch.testing.assert_close(by_hand, model.norm(model.blocks[-1](kept))[:, 0])
        assert row.shape == (2, 2, 16)

    def test_contrast_by_hand(self):
        z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        labels, margin, total = torch.tensor([0, 0, 1, 2, 1]), 0.1, 0.0
        for i in range(5):
            for j in range(5):
                s = float(z[i] @ z[j] / z[i].norm() / z[j].norm())
                total += 1 - s if labels[i] == labels[j] else max(0.0, s - margin)
        assert float(contrast(z, labels, margin)) == pytest.approx(total / 25, rel=1e-5)
        assert contrast(z[:0], labels[:0], margin) == 0
        with torch.autocast("cpu", torch.bfloat16):
            assert float(contrast(z, labels, margin)) == pytest.approx(total / 25, rel=1e-5)

    def test_mixed_photos_are_not_contrasted(self):
        network = self.network("test_vit")
        x, y = self.batch(4)
        shares = torch.nn.functional.one_hot(y, 4).float()
        same = network.module(x, shares)["contrast"]
        assert same == network.module(x, y)["contrast"]
        shares[3] = 0.25
        alone = contrast(network.method.describe(x[:3]), y[:3], 0.4)
        torch.testing.assert_close(network.module(x, shares)["contrast"], alone)

    @pytest.mark.parametrize("backbone", ["test_resnet", "test_vit2", "test_vit_relpos"])
    def test_backbones_that_cannot_serve(self, backbone):
        with pytest.raises(FieldmarkError, match=r"class token.*vit_small") as caught:
            methods.get("transfg")(backbone_of(backbone, 160 if backbone == "test_vit2" else 64), (), TASK)
        assert "\n" not in str(caught.value)


class TestPIM(TrainedTests):
    name = "pim"
    settings: ClassVar[dict[str, Any]] = {"width": 32}

    def test_its_loss_by_hand(self):
        network = self.network("test_efficientnet")
        x, y = self.batch(4)
        method: Any = network.method
        torch.manual_seed(7)
        losses = network.module(x, y)
        torch.manual_seed(7)
        looked = method.look(method.backbone(x))
        total = cross_entropy(method.head(looked.combined), y)
        for logits, picked in zip(looked.logits, looked.picked, strict=True):
            left = [
                row[[n for n in range(len(row)) if n not in kept.tolist()]]
                for row, kept in zip(logits, picked, strict=True)
            ]
            total = total + 0.5 * cross_entropy(logits.mean(1), y)
            total = total + 5 * (torch.stack(left).tanh() + 1).square().mean()
        torch.testing.assert_close(losses["loss"], total)

    def test_what_it_keeps(self):
        method: Any = self.make("test_resnet", 64)
        assert method.grids == [(8, 8), (4, 4), (2, 2)]
        assert method.keep == [16, 4, 1], "at most a quarter of a level"
        with torch.inference_mode():
            looked = method.look(method.backbone(images(2, 64)))
        for logits, picked, keep in zip(looked.logits, looked.picked, method.keep, strict=True):
            assert picked.shape == (2, keep)
            for row, kept in zip(logits.softmax(2).amax(2), picked, strict=True):
                left = [n for n in range(len(row)) if n not in kept.tolist()]
                assert row[kept].min() >= row[left].max()

    def test_photos_smaller_than_it_was_built_for(self):
        """Views are smaller than photos: as many tokens are selected from them."""
        method: Any = self.make("test_resnet", 64)
        with torch.inference_mode():
            assert method(images(2, 32)).shape == (2, 4)
            looked = method.look(method.backbone(images(2, 32)))
        assert [picked.shape[1] for picked in looked.picked] == method.keep
        assert all(2 * keep <= one.shape[1] for keep, one in zip(method.keep, looked.logits, strict=True))

    def test_settings(self):
        backbone = backbone_of("test_resnet", 64)
        method: Any = methods.get("pim")(
            backbone, (), TASK, {"levels": 2, "keep": 1, "growth": 3, "width": 16}
        )
        assert method.keep == [3, 1] and method.widths == [16]


class TestHERBS(TrainedTests):
    name = "herbs"
    settings: ClassVar[dict[str, Any]] = {"width": 32}
    steps = 80  # batch norm's running statistics come after

    def test_temperature_falls_at_even_steps(self):
        shares = [temperature(64, epoch / 80) for epoch in range(80)]
        assert shares == [64 * 0.5 ** (epoch // 10) for epoch in range(80)]
        assert temperature(64, 1.0) == 0.5

    def test_refinement_by_hand(self):
        first, second = (torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
        total, t = 0.0, 4.0
        for b in range(2):
            for n in range(5):
                p, q = (second[b, n] / t).softmax(0), (first[b, n] / t).softmax(0)
                total += float((p * (p / q).log()).sum()) / 3
        assert float(refinement(first, second, t)) == pytest.approx(total / 10, rel=1e-4)
        second.requires_grad_()
        assert not refinement(first, second, t).requires_grad, "the teacher is not taught"

    def test_its_loss_is_pims_and_the_refinement(self):
        network = self.network("test_efficientnet")
        x, y = self.batch(4)
        method: Any = network.method
        torch.manual_seed(7)
        losses = network.module(x, y, progress=0.3)
        torch.manual_seed(7)
        looked = method.look(method.backbone(x))
        refined = sum(refinement(a, b, 16.0) for a, b in zip(looked.first, looked.logits, strict=True))
        rest = cross_entropy(method.head(looked.combined), y)
        total = rest + 0.3 * losses["levels"] + 5 * losses["suppression"] + 1.375 * refined
        torch.testing.assert_close(losses["loss"], total)
        torch.testing.assert_close(losses["refinement"], refined)

    def test_the_answer_does_without_the_first_path(self):
        method: Any = self.make("test_efficientnet", 64)
        before = method(images(2, 64))
        for parameter in method.first.parameters():
            torch.nn.init.zeros_(parameter)
        assert torch.equal(method(images(2, 64)), before)
