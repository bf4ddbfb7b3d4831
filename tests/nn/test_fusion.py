"""Maps of several stages: which ones, and resizing by area against cells counted by hand and torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.fusion import area_resize, area_weights, join, level_widths, levels
from fieldmark.nn.weights import Source


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("source, target", [(5, 5), (6, 3), (3, 6), (5, 3), (3, 5), (7, 1), (1, 4)])
def test_area_weights_by_hand(source, target):
    """Fine cells, each in one old and one new place, are counted."""
    weights = area_weights(source, target)
    assert weights.shape == (target, source)
    counted = torch.zeros(target, source)
    for cell in range(source * target):
        counted[cell // source, cell // target] += 1 / source
    torch.testing.assert_close(weights, counted)


def test_resizing_by_a_whole_factor_is_torchs():
    x = maps(2, 3, 12, 8)
    torch.testing.assert_close(area_resize(x, 4, 2), adaptive_avg_pool2d(x, (4, 2)))
    torch.testing.assert_close(area_resize(x, 24, 16), interpolate(x, (24, 16), mode="nearest"))
    assert area_resize(x, 12, 8) is x


@pytest.mark.parametrize("size", [(5, 7), (13, 3), (1, 1)])
def test_the_mean_stays(size):
    x = maps(2, 3, 9, 8)
    y = area_resize(x, *size)
    assert y.shape == (2, 3, *size)
    torch.testing.assert_close(y.mean((2, 3)), x.mean((2, 3)))


def test_height_and_width_are_not_mixed_up():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    torch.testing.assert_close(area_resize(x, 2, 1)[0, 0, :, 0], torch.tensor([1.0, 4.0]))
    torch.testing.assert_close(area_resize(x, 1, 3)[0, 0, 0], torch.tensor([1.5, 2.5, 3.5]))


def test_join():
    one, two = maps(2, 3, 8, 8), maps(2, 5, 4, 4, seed=1)
    joined = join([one, two], 4, 4)
    torch.testing.assert_close(joined, torch.cat([adaptive_avg_pool2d(one, 4), two], 1))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 64])
def test_levels(name, count):
    backbone = Backbone(Source(name, None, "random", {}), 64)
    with torch.inference_mode():
        features = backbone(maps(2, 3, 64, 64))
    found = levels(features, count)
    assert [x.shape[1] for x in found] == level_widths(backbone, count)
    assert len(found) == (min(count, len(features.maps)) or len(features.maps))
    assert found[-1] is features.last or torch.equal(found[-1], features.last)
    assert all(x is y for x, y in zip(reversed(found[:-1]), reversed(features.maps[:-1]), strict=False))


def test_levels_without_a_map_of_its_own_to_pool():
    one, two = maps(1, 2, 4, 4), maps(1, 3, 2, 2)
    assert [x.shape[1] for x in levels(Features([one, two], two.mean((2, 3))), 2)] == [2, 3]
    other = maps(1, 9, 2, 2)
    assert levels(Features([one, two], two.mean((2, 3)), other), 1)[0] is other


def test_gradients():
    x = maps(1, 2, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: area_resize(y, 5, 2), (x,))
