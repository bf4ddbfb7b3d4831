"""Attention pooling against loops and numpy; maps are drawn as often as they should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fieldmark.nn.attention_pooling import AttentionMaps, attention_pooling, drawn, part_features


def problem(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [2, 5, 3, 4] of both signs and maps [2, 6, 3, 4], 0 and more."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, 4, generator=generator, dtype=dtype)
    return x, torch.randn(2, 6, 3, 4, generator=generator, dtype=dtype).relu()


def test_pooling_by_a_loop():
    x, maps = problem()
    got = attention_pooling(x, maps)
    for b in range(2):
        for m in range(6):
            for c in range(5):
                total = sum(float(maps[b, m, i, j] * x[b, c, i, j]) for i in range(3) for j in range(4))
                assert float(got[b, m, c]) == pytest.approx(total / 12, abs=1e-6)


def test_part_features_by_numpy():
    x, maps = problem()
    f = np.einsum("bmhw,bchw->bmc", maps.numpy(), x.numpy()) / 12
    f = (np.sign(f) * np.sqrt(np.abs(f))).reshape(2, -1)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    np.testing.assert_allclose(part_features(x, maps), f, atol=1e-3)


def test_the_scale_of_maps_and_features_does_not_count():
    x, maps = problem()
    for factor in (1e-4, 9):
        torch.testing.assert_close(part_features(factor * x, maps), part_features(x, maps))
    torch.testing.assert_close(part_features(x, 4 * maps), part_features(x, maps), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_numbers_come_near(dtype):
    x, maps = problem()
    short = part_features((1000 * x).to(dtype), maps.to(dtype))  # whose squares half precision does not hold
    assert (short - part_features(x, maps)).norm(dim=1).max() < 0.02
    exact = part_features(x, 1e5 * maps)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(part_features(x, 1e5 * maps), exact)


def test_nothing_to_see():
    x, maps = (one.requires_grad_() for one in problem())
    z = part_features(0 * x, 0 * maps)
    assert (z == 0).all()
    z.sum().backward()
    assert x.grad.isfinite().all() and maps.grad.isfinite().all()


def test_gradients():
    x, maps = (one.requires_grad_() for one in problem(torch.float64))
    assert torch.autograd.gradcheck(part_features, (x, maps))


def test_maps_by_hand():
    torch.manual_seed(0)
    layer, (x, _) = AttentionMaps(5, 3).eval(), problem()
    with torch.no_grad():
        layer.norm.running_mean.normal_()
        layer.norm.running_var.uniform_(0.5, 2)
        layer.norm.weight.normal_()
        layer.norm.bias.normal_()
        weight = layer.convolution.weight[:, :, 0, 0]
        raw = torch.einsum("mc,bchw->bmhw", weight, x)
        mean, var = layer.norm.running_mean, layer.norm.running_var
        level = (raw - mean[:, None, None]) / (var[:, None, None] + layer.norm.eps).sqrt()
        expected = (level * layer.norm.weight[:, None, None] + layer.norm.bias[:, None, None]).clamp_min(0)
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)
    assert (expected == 0).any() and (expected > 0).any()


def test_drawn_as_often_as_the_root_of_their_sum():
    maps = torch.zeros(1, 3, 2, 2)
    maps[0, 0], maps[0, 1, 0, 0], maps[0, 2, 1, 1] = 4.0, 1.0, 9.0  # sums 16, 1, 9
    torch.manual_seed(0)
    got = drawn(maps.expand(4000, -1, -1, -1), 2)
    assert got.shape == (4000, 2, 2, 2)
    for number, expected in enumerate((4 / 8, 1 / 8, 3 / 8)):
        share = (got == maps[0, number]).flatten(2).all(2).float().mean(0)
        assert (share - expected).abs().max() < 0.05  # 6 standard errors
    pairs = (got[:, 0] == maps[0, 0]).flatten(1).all(1) & (got[:, 1] == maps[0, 0]).flatten(1).all(1)
    assert pairs.float().mean() == pytest.approx(0.25, abs=0.05), "each for itself"


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_maps_that_say_nothing_are_drawn_alike(value):
    maps = torch.full((600, 3, 1, 1), value)
    maps[:, 2] = 0.0
    torch.manual_seed(0)
    got = drawn(maps, 1)
    assert got.shape == (600, 1, 1, 1)
    share = float((got == 0).float().mean())
    assert share == 1 if value == 0 else share == pytest.approx(1 / 3, abs=0.12)
