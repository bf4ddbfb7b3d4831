"""What every method must do, whatever its idea. A method's tests inherit this and add what is its own.

class TestMine(MethodTests):
    name = "mine"
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fieldmark import methods
from fieldmark.methods.base import MOST_ENTRIES, Method
from fieldmark.nn.backbone import Backbone
from fieldmark.nn.graph import export
from fieldmark.nn.weights import Source
from fieldmark.runtime.engine import ENGINES, compile_graph
from fieldmark.runtime.errors import FieldmarkError

#: Backbones of each kind, with a side in pixels that is not round, and one that is.
BACKBONES = {"test_efficientnet": (75, 64), "test_resnet": (51, 64), "test_vit": (80, 64)}
CLASSES = 4


def backbone_of(name: str, size: int) -> Backbone:
    return Backbone(Source(name, None, "random", {}), size)


shared = cache(backbone_of)


def images(batch: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


class MethodTests:
    """name: the method's; change: the largest difference between engines, relative to the largest answer."""

    name: str
    change = 1e-3

    def make(
        self, backbone: str, size: int, scales: tuple[int, ...] = (), *, fresh: bool = False, **head: Any
    ) -> Method:
        """fresh: with a backbone of its own."""
        method = methods.get(self.name)((backbone_of if fresh else shared)(backbone, size), scales)
        torch.manual_seed(0)
        method.add_head(CLASSES, 5, **head)
        return method.eval()

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_logits_and_embedding(self, backbone):
        for size in BACKBONES[backbone]:
            method = self.make(backbone, size)
            with torch.inference_mode():
                x = images(3, size)
                logits, features = method(x), method.features(x)
                torch.testing.assert_close(logits, method.head(features["descriptor"]))
            assert logits.shape == (3, CLASSES) and logits.isfinite().all()
            assert features["descriptor"].shape == (3, sum(method.widths))
            assert features["embedding"].shape == (3, 5)
            torch.testing.assert_close(features["embedding"].norm(dim=1), torch.ones(3))

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_a_photo_alone_or_among_others(self, backbone):
        size = BACKBONES[backbone][0]
        method, x = self.make(backbone, size), images(4, size)
        with torch.inference_mode():
            whole = method(x)
            for row in range(4):
                torch.testing.assert_close(method(x[row : row + 1])[0], whole[row], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(method(x.flip(0)), whole.flip(0), rtol=1e-3, atol=1e-4)
            assert (whole[0] - whole[1]).abs().max() > 1e-4, "photos are told apart"

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_the_same_each_time(self, backbone):
        size = BACKBONES[backbone][0]
        one, two = (self.make(backbone, size, fresh=True) for _ in range(2))
        with torch.inference_mode():
            assert torch.equal(one(images(2, size)), two(images(2, size)))

    @pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet"])
    def test_several_scales(self, backbone):
        """Each scale's parts, largest first, are those of a method that looks at this scale alone."""
        method = self.make(backbone, 64, (48, 64, 33))
        assert method.scales == [64, 48, 33] and len(method.widths) % 3 == 0
        x, start, parts = images(2, 64), 0, len(method.widths) // 3
        with torch.inference_mode():
            descriptor = method.describe(x)
            for number, scale in enumerate(method.scales):
                width = sum(method.widths[number * parts : (number + 1) * parts])
                alone = self.make(backbone, 64, (scale,))
                torch.testing.assert_close(
                    descriptor[:, start : start + width], alone.describe(x), rtol=1e-3, atol=1e-4
                )
                start += width
        assert start == descriptor.shape[1]

    def test_scales_that_cannot_be(self):
        for scales in ((65,), (0,), (64, -3)):
            with pytest.raises(FieldmarkError, match="scales") as caught:
                self.make("test_resnet", 64, scales)
            assert "\n" not in str(caught.value)
        with pytest.raises(FieldmarkError, match="test_vit3 cannot look at 48 px") as caught:
            self.make("test_vit3", 64, (64, 48))  # its size is fixed
        assert "\n" not in str(caught.value)
        assert self.make("test_resnet", 64, (48, 48)).scales == [48], "twice is once"

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_parts_have_unit_length_and_fit_the_cache(self, backbone):
        method = self.make(backbone, 64)
        with torch.inference_mode():
            parts = method.parts(method.backbone(images(2, 64)))
        assert [part.shape[1] for part in parts] == method.widths
        for part in parts:
            torch.testing.assert_close(part.norm(dim=1), torch.ones(2), rtol=1e-3, atol=1e-3)
        assert sum(method.widths) <= MOST_ENTRIES

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_blank_photos(self, backbone):
        method = self.make(backbone, 64)
        x = torch.tensor([0.0, 1.0, -2.0])[:, None, None, None].expand(3, 3, 64, 64).clone().requires_grad_()
        logits = method(x)
        assert logits.isfinite().all()
        logits.sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_every_weight_has_a_part(self, backbone):
        """A gradient reaches all of the backbone (what it has after pooling aside) and the head."""
        method = self.make(backbone, 64, fresh=True)
        method(images(2, 64)).square().sum().backward()
        lost = [n for n, p in method.named_parameters() if p.grad is None and not n.startswith("projection")]
        assert lost == []

    @pytest.mark.parametrize(
        "backbone, scales, head",
        [("test_efficientnet", (64, 48), {}), ("test_resnet", (), {"rank": 3}), ("test_vit", (), {})],
    )
    def test_engines_say_the_same(self, backbone, scales, head, tmp_path: Path):
        method = self.make(backbone, 64, scales, **head)
        made = export(method, images(2, 64), tmp_path / "graph.onnx", "logits")
        assert made.error < self.change
        x = images(5, 64, seed=1)
        with torch.inference_mode():
            expected = method(x).numpy()
        for engine in ENGINES:
            (logits,) = compile_graph(tmp_path / "graph.onnx", outputs=["logits"], engine=engine).run(
                x.numpy(), ["logits"]
            )
            assert np.abs(logits - expected).max() / np.abs(expected).max() < self.change, engine
