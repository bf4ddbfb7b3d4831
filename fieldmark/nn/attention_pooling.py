"""Attention maps made by a convolution, features pooled under each of them, and maps drawn to guide augmentation.

Hu, Qi, "See Better Before Looking Closer: Weakly Supervised Data Augmentation Network for Fine-Grained Visual
Classification", 2019 (WS-DAN).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fieldmark.nn.pooling import l2_normalise
from fieldmark.nn.sketch import level, signed_root


class AttentionMaps(nn.Module):
    """Features [B, C, h, w] -> M maps [B, M, h, w], 0 and more: 1x1 convolution, batch norm, ReLU (equation 1)."""

    def __init__(self, channels: int, maps: int):
        super().__init__()
        self.convolution = nn.Conv2d(channels, maps, 1, bias=False)
        self.norm = nn.BatchNorm2d(maps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolution(x)).relu()


def attention_pooling(x: Tensor, maps: Tensor) -> Tensor:
    """Bilinear attention pooling: features [B, C, h, w] under maps [B, M, h, w] -> [B, M, C].

    F_mc = mean over positions of A_m X_c (equations 2 and 3, pooled by the mean).
    """
    return maps.flatten(2) @ x.flatten(2).transpose(1, 2) / (x.shape[2] * x.shape[3])


def part_features(x: Tensor, maps: Tensor) -> Tensor:
    """`attention_pooling`, its signed root, and all parts together at unit length: [B, M C].

    Features are brought to a mean square of 1 first: it changes nothing but what the root takes for small.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # else squares may overflow
    with torch.autocast(x.device.type, enabled=False):  # and sums over all places
        return l2_normalise(signed_root(attention_pooling(level(wide), maps.to(wide.dtype))).flatten(1))


def drawn(maps: Tensor, count: int) -> Tensor:
    """``count`` maps of each photo by chance, as likely as the root of their sum: [B, M, h, w] -> [B, count, h, w].

    Drawn with replacement from torch's generator. Maps that are all zeros, or not finite, are drawn alike.
    """
    weights = maps.detach().float().sum((2, 3)).clamp_min(0).sqrt()
    weights = weights.nan_to_num(0.0, 0.0, 0.0) + 1e-6
    chosen = torch.multinomial(weights, count, replacement=True)
    return maps.gather(1, chosen[:, :, None, None].expand(-1, -1, *maps.shape[2:]))
