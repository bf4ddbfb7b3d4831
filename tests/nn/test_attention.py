"""Gates for channels and places against loops and timm's modules."""

from __future__ import annotations

import math

import pytest
import torch
from timm.layers.cbam import ChannelAttn, SpatialAttn

from fieldmark.nn.attention import ChannelGates, SpatialGates, channel_gates, spatial_gates


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_channel_gates_by_hand():
    x, down, up = maps(2, 3, 2, 2), maps(4, 3, seed=1), maps(3, 4, seed=2)
    gates = channel_gates(x, down, up)
    assert gates.shape == (2, 3, 1, 1)
    for photo, row in zip(x, gates[:, :, 0, 0], strict=True):
        total = [0.0] * 3
        for pooled in ([float(c.mean()) for c in photo], [float(c.max()) for c in photo]):
            units = [max(0.0, sum(float(w) * v for w, v in zip(d, pooled, strict=True))) for d in down]
            total = [
                t + sum(float(w) * u for w, u in zip(r, units, strict=True))
                for t, r in zip(total, up, strict=True)
            ]
        torch.testing.assert_close(row, torch.tensor([sigmoid(t) for t in total]))


def test_spatial_gates_by_hand():
    x, kernel, bias = maps(2, 3, 4, 5), maps(1, 2, 3, 3, seed=1), torch.tensor([0.3])
    gates = spatial_gates(x, kernel, bias)
    assert gates.shape == (2, 1, 4, 5)
    for photo, found in zip(x, gates[:, 0], strict=True):
        for i in range(4):
            for j in range(5):
                total = 0.3
                for a in range(3):
                    for b in range(3):
                        row, column = i + a - 1, j + b - 1
                        if 0 <= row < 4 and 0 <= column < 5:  # outside there is nothing
                            seen = photo[:, row, column]
                            total += float(kernel[0, 0, a, b] * seen.mean() + kernel[0, 1, a, b] * seen.max())
                assert float(found[i, j]) == pytest.approx(sigmoid(total), rel=1e-4)


def test_they_are_timms():
    """timm's channel attention, and its spatial attention where the batch norm in it changes nothing."""
    x, ours, theirs = maps(2, 32, 6, 5), ChannelGates(32, 2), ChannelAttn(32)
    with torch.no_grad():
        ours.down.weight.copy_(theirs.fc1.weight.flatten(1))
        ours.up.weight.copy_(theirs.fc2.weight.flatten(1))
        torch.testing.assert_close(ours(x) * x, theirs(x))
        places, other = SpatialGates(7), SpatialAttn(7).eval()
        places.conv.weight.copy_(other.conv.conv.weight)
        assert places.conv.bias is not None
        places.conv.bias.zero_()
        torch.testing.assert_close(places(x) * x, other(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("side", [1, 2, 9])
def test_any_size(kernel, side):
    gates = SpatialGates(kernel)(maps(1, 4, side, side))
    assert gates.shape == (1, 1, side, side) and 0 < gates.min() <= gates.max() < 1


def test_gradients():
    x = maps(2, 3, 3, 3).double().requires_grad_()
    for module in (ChannelGates(3, 4).double(), SpatialGates(3).double()):
        assert torch.autograd.gradcheck(module, (x,))
