"""Soft attention and fusion of maps: the common tests, and each one's equation by hand."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from method_tests import BACKBONES, TrainedTests, images
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, linear

from fieldmark import methods
from fieldmark.methods.base import Method
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.fusion import area_resize, levels
from fieldmark.nn.weights import Source
from fieldmark.runtime.errors import UsageError


def seen(method: Method) -> Features:
    """Two photos as the backbone sees them."""
    with torch.inference_mode():
        return method.backbone(images(2, 64))


def level(z: Tensor) -> Tensor:
    """Rows, or maps, of mean 0 and variance 1 in each photo."""
    rows = z.flatten(1)
    rows = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    return rows.reshape(z.shape)


def with_settings(tests: TrainedTests, **settings: Any) -> Any:
    backbone = tests.make("test_resnet", 64).backbone
    return methods.get(tests.name)(backbone, settings=settings).eval()


class TestSqueezeExcitation(TrainedTests):
    name = "se"

    def test_by_hand(self):
        method: Any = self.make("test_efficientnet", 64)
        features = seen(method)
        with torch.inference_mode():
            for part, x, gate in zip(method.parts(features), levels(features, 2), method.gates, strict=True):
                mean = x.mean((2, 3))
                units = linear(mean, gate.fc1.weight.flatten(1), gate.fc1.bias).relu()
                gates = linear(units, gate.fc2.weight.flatten(1), gate.fc2.bias).sigmoid()
                torch.testing.assert_close(part, level(gates * mean))

    def test_settings(self):
        method = with_settings(self, stages=1, reduction=4)
        assert method.widths == [96] and method.gates[0].fc1.out_channels == 24
        assert with_settings(self, reduction=1000).gates[0].fc1.out_channels == 8, "never fewer"
        with pytest.raises(UsageError, match="stages is 0"):
            with_settings(self, stages=0)


class TestCBAM(TrainedTests):
    name = "cbam"

    def test_by_hand(self):
        """First channels, then places, of what the first gates left; where it looks is the last stage's gates."""
        method: Any = self.make("test_resnet", 64)
        features = seen(method)
        with torch.inference_mode():
            for number, (part, x) in enumerate(zip(method.parts(features), levels(features, 2), strict=True)):
                x = x * method.channels[number](x)
                places = method.places[number](x)
                torch.testing.assert_close(part, level((x * places).mean((2, 3))))
            torch.testing.assert_close(method.attention(images(2, 64)), places[:, 0])

    def test_settings(self):
        method = with_settings(self, stages=3, kernel=3)
        assert len(method.widths) == 3 and method.places[0].conv.kernel_size == (3, 3)
        with pytest.raises(UsageError, match=r"kernel is 4.*5 would serve"):
            with_settings(self, kernel=4)


class TestMultiscale(TrainedTests):
    name = "multiscale"
    settings: ClassVar[dict[str, Any]] = {"channels": 32}

    def test_by_hand(self):
        """Laterals, sums from coarse to fine, a 3x3 convolution each, what lies above 0, its mean."""
        method: Any = self.make("test_efficientnet", 64)
        features = seen(method)
        state = method.pyramid.state_dict()
        with torch.inference_mode():
            above: Tensor | None = None
            parts: list[Tensor] = []
            for number, x in reversed([*enumerate(levels(features, 3))]):
                inner = conv2d(
                    x, state[f"inner_blocks.{number}.0.weight"], state[f"inner_blocks.{number}.0.bias"]
                )
                if above is not None:
                    inner = inner + interpolate(above, inner.shape[2:], mode="nearest")
                above = inner
                weight, bias = (state[f"layer_blocks.{number}.0.{kind}"] for kind in ("weight", "bias"))
                fused = conv2d(inner, weight, bias, padding=1).clamp_min(0)
                parts.insert(0, level(fused.mean((2, 3))))
            torch.testing.assert_close(torch.cat(method.parts(features), 1), torch.cat(parts, 1))
            torch.testing.assert_close(method.attention(images(2, 64)), fused.mean(1))

    def test_settings(self):
        assert with_settings(self, stages=2, channels=7).widths == [7, 7]
        assert len(with_settings(self, stages=64).widths) == 5, "all that there are"


class TestMapAttention(TrainedTests):
    name = "map_attention"

    def test_by_hand(self):
        method: Any = self.make("test_resnet", 64)
        features = seen(method)
        side = features.maps[-2].shape[2]
        assert len(method.weights) == len(features.maps) == 5, "every stage"
        with torch.no_grad():
            for number, weight in enumerate(method.weights):
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
            total = torch.zeros(2, 256, side, side)
            for weight, conv, x in zip(method.weights, method.convs, levels(features), strict=True):
                # The convolution first and the resizing after it is the same.
                total += weight * level(area_resize(conv(x), side, side))
            truth = method.dense(total.clamp_min(0).mean((2, 3)))
            torch.testing.assert_close(method.parts(features)[0], truth, rtol=1e-4, atol=1e-4)
            expected = total.clamp_min(0).mean(1)
            torch.testing.assert_close(method.attention(images(2, 64)), expected, rtol=1e-4, atol=1e-4)

    def test_weights_are_places(self):
        """A weight map of zeros everywhere but at one place leaves what is seen there."""
        method: Any = self.make("test_resnet", 64)
        with torch.no_grad():
            for weight in method.weights:
                weight.zero_()
                weight[:, 1, 2] = 1
        places = method.attention(images(3, 64))
        assert (places[:, 1, 2] > 0).all() and places.sum() == places[:, 1, 2].sum()

    def test_settings(self):
        method = with_settings(self, stages=2, channels=6, hidden=9)
        assert method.widths == [9] and [w.shape[0] for w in method.weights] == [6, 6]


class TestVGGAttention(TrainedTests):
    name = "vgg_attention"
    frozen = tuple(BACKBONES)

    def test_by_hand(self):
        method: Any = self.make("test_resnet", 64)
        features = seen(method)
        with torch.inference_mode():
            third, second, last = levels(features, 3)
            gate = method.gates
            units = linear(last.mean((2, 3)), gate.fc1.weight.flatten(1), gate.fc1.bias).relu()
            gates = linear(units, gate.fc2.weight.flatten(1), gate.fc2.bias).sigmoid()
            assert units.shape == (2, 1024) and gates.shape == (2, last.shape[1])
            attended = last * gates[:, :, None, None]
            joined = [area_resize(level(x), *last.shape[2:]) for x in (third, second, last, attended)]
            fused = method.fuse(torch.cat(joined, 1))
            truth = linear(fused.mean((2, 3)), method.dense[0].weight, method.dense[0].bias).clamp_min(0)
            torch.testing.assert_close(method.parts(features)[0], truth, rtol=1e-4, atol=1e-4)

    def test_frozen_or_not(self):
        for frozen in (True, False):
            method = with_settings(self, frozen=frozen)
            method.begin(0)
            assert all(p.requires_grad != frozen for p in method.backbone.parameters())
            assert all(p.requires_grad for p in method.dense.parameters())
            method.backbone.requires_grad_(True)  # others share it

    def test_on_vgg16(self):
        """Maps of all its stages, at sides of 64 to 2, fit together. (Its own dense layers are kept small.)"""
        backbone = Backbone(Source("vgg16", None, "random", {"mlp_ratio": 0.01}), 64)
        method: Any = methods.get(self.name)(backbone, settings={"stages": 64, "channels": 8})
        assert method.fuse[0].in_channels == 64 + 128 + 256 + 4 * 512
        method.add_head(3, 4)
        with torch.inference_mode():
            assert method.eval()(images(1, 64)).shape == (1, 3)

    def test_settings(self):
        method = with_settings(self, stages=1, units=3, channels=4, hidden=5)
        assert method.widths == [5] and method.fuse[0].in_channels == 2 * 96
