"""Methods of the family "transformers", by the common tests and by what is each one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_tests import TASK, TrainedTests, backbone_of, images

from fieldmark import methods
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
        with pytest.raises(FieldmarkError, match="class token.*vit_small") as caught:
            methods.get("transfg")(backbone_of(backbone, 160 if backbone == "test_vit2" else 64), (), TASK)
        assert "\n" not in str(caught.value)
