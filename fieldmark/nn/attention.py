"""Soft attention: gates between 0 and 1 for the channels and for the places of a map [B, C, H, W].

Each is a function and a module beside it. Squeeze-and-excitation gates are torchvision's
(`torchvision.ops.SqueezeExcitation`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, relu


def channel_gates(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """sigmoid(mlp(mean over places) + mlp(largest over places)): [B, C, H, W] -> [B, C, 1, 1].

    down: [R, C] and up: [C, R], of the one perceptron that both share, mlp(v) = up relu(down v) (Woo et al.,
    "CBAM: Convolutional Block Attention Module", ECCV 2018, equation 2).
    """
    pooled = torch.stack([x.mean((2, 3)), x.amax((2, 3))])
    return linear(relu(linear(pooled, down)), up).sum(0).sigmoid()[:, :, None, None]


class ChannelGates(nn.Module):
    """`channel_gates` through ``hidden`` units. x times them is the gated map."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.down = nn.Linear(channels, hidden, bias=False)
        self.up = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return channel_gates(x, self.down.weight, self.up.weight)


def spatial_gates(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """sigmoid(kernel * [mean over channels; largest over channels]): [B, C, H, W] -> [B, 1, H, W].

    kernel: [1, 2, K, K], K odd; bias: [1] (CBAM, equation 3).
    """
    pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return conv2d(pooled, kernel, bias, padding=kernel.shape[-1] // 2).sigmoid()


class SpatialGates(nn.Module):
    """`spatial_gates` by a kernel of K x K places, K odd. x times them is the gated map."""

    def __init__(self, kernel: int = 7):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return spatial_gates(x, self.conv.weight, self.conv.bias)
