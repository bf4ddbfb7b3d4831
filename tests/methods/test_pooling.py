"""Bilinear and compact bilinear pooling: the common tests, and each one's equation by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_tests import FrozenTests, images

from fieldmark import methods
from fieldmark.methods.base import MOST_ENTRIES
from fieldmark.nn.backbone import Features
from fieldmark.nn.pooling import FixedReduction
from fieldmark.runtime.errors import UsageError


def parts_of(method: Any, last: torch.Tensor) -> torch.Tensor:
    (part,) = method.parts(Features([last, last], last.mean((2, 3))))
    return part


class TestBilinear(FrozenTests):
    name = "bilinear"

    def test_by_hand(self):
        """The dot product of two descriptors is the Frobenius product of two matrices of rooted products."""
        method: Any = self.make("test_resnet", 64)
        x = images(3, 5).repeat(1, method.backbone.width // 3, 1, 1) + images(1, 5, seed=1)[:, :1]
        x = x + torch.arange(method.backbone.width)[:, None, None] / 40
        rows = []
        for photo in x.double():
            tokens = photo.flatten(1)
            products = torch.zeros(len(tokens), len(tokens), dtype=torch.float64)
            for place in range(tokens.shape[1]):
                products += torch.outer(tokens[:, place], tokens[:, place])
            rooted = products.sign() * products.abs().sqrt()
            rows.append((rooted / rooted.norm()).flatten())
        z, truth = parts_of(method, x), torch.stack(rows)
        assert z.shape[1] == 96 * 97 // 2, "96 channels need no projection"
        torch.testing.assert_close(z @ z.T, (truth @ truth.T).float(), rtol=1e-3, atol=1e-3)

    def test_channels_are_an_option(self):
        assert self.with_settings(channels=5).widths == [15]
        assert self.with_settings(channels=180).widths == [96 * 97 // 2], "no more than there are"
        assert 180 * 181 // 2 <= MOST_ENTRIES < 181 * 182 // 2
        with pytest.raises(UsageError, match="channels is 181"):
            self.with_settings(channels=181)

    def with_settings(self, **settings: Any) -> Any:
        return methods.get(self.name)(self.make("test_resnet", 64).backbone, settings=settings)


class TestCompactBilinear(FrozenTests):
    name = "compact_bilinear"

    def test_it_is_the_transform_of_the_paper(self):
        """Two count sketches at each place, transformed, multiplied, transformed back, averaged, rooted."""
        method: Any = self.make("test_resnet", 64)
        x = torch.rand(2, method.backbone.width, 3, 4, generator=torch.Generator().manual_seed(1))
        first, second = torch.zeros(2, method.options.entries, method.backbone.width, dtype=torch.float64)
        for channel in range(method.backbone.width):
            for matrix, index, sign in zip(
                (first, second), method.sketch.index, method.sketch.sign, strict=True
            ):
                matrix[index[channel], channel] = sign[channel]
        for row, photo in zip(parts_of(method, x), x.double().flatten(2), strict=True):
            product = torch.fft.fft(first @ photo, dim=0) * torch.fft.fft(second @ photo, dim=0)
            sketch = torch.fft.ifft(product, dim=0).real.mean(1)
            truth = sketch.sign() * sketch.abs().sqrt()
            assert row.double() @ truth / truth.norm() > 0.9999

    def test_its_length_is_an_option(self):
        backbone = self.make("test_resnet", 64).backbone
        assert methods.get(self.name)(backbone, settings={"entries": 100}).widths == [100]
        with pytest.raises(UsageError, match="entries is 20000"):
            methods.get(self.name)(backbone, settings={"entries": 20_000})

    def test_the_same_for_every_data_set(self):
        """Nothing in it is drawn by the user's chance: what it gives of a photo can be kept."""
        state = torch.random.get_rng_state()
        backbone = self.make("test_resnet", 64).backbone
        torch.manual_seed(1)
        one: Any = methods.get(self.name)(backbone)
        torch.manual_seed(2)
        two: Any = methods.get(self.name)(backbone)
        assert torch.equal(one.sketch.index, two.sketch.index) and torch.equal(
            one.sketch.sign, two.sketch.sign
        )
        torch.random.set_rng_state(state)


@pytest.mark.parametrize("name", ["bilinear", "compact_bilinear"])
class TestBoth:
    def make(self, name: str) -> Any:
        return TestBilinear.make(type("", (TestBilinear,), {"name": name})(), "test_resnet", 64)

    def test_how_bright_the_map_is_does_not_matter(self, name):
        method = self.make(name)
        x = torch.rand(2, method.backbone.width, 4, 4, generator=torch.Generator().manual_seed(1))
        for gain in (1e-3, 1e3):
            torch.testing.assert_close(parts_of(method, x * gain), parts_of(method, x), rtol=1e-3, atol=1e-5)

    def test_a_map_of_zeros(self, name):
        method = self.make(name)
        x = torch.zeros(2, method.backbone.width, 4, 4, requires_grad=True)
        z = parts_of(method, x)
        z.sum().backward()
        assert not z.any() and x.grad is not None and x.grad.isfinite().all()

    def test_half_precision_comes_near(self, name):
        """Squares of 300 pass the largest half-precision number; the sums are taken in single precision."""
        method = self.make(name)
        x = 300 * torch.rand(2, method.backbone.width, 4, 4, generator=torch.Generator().manual_seed(1))
        exact, short = parts_of(method, x), parts_of(method, x.half())
        assert short.dtype == torch.float16
        torch.testing.assert_close(short.float(), exact, rtol=2e-2, atol=1e-3)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(parts_of(method, x), exact)

    def test_wide_maps_are_projected(self, name):
        from types import SimpleNamespace

        method = self.make(name)
        method.build(SimpleNamespace(width=700))
        assert isinstance(method.reduce, FixedReduction) and method.reduce.basis.shape[1] == 700
        assert parts_of(method, images(1, 3).repeat(1, 300, 1, 1)[:, :700]).shape[1] <= MOST_ENTRIES
