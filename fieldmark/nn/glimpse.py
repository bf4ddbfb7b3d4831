"""Looking at a photo through a few small windows: the windows, how they are drawn, and learning where to put them.

A place is (x, y), from -1 (the photo's left or upper edge) to 1. All of it works on whole batches, and windows
export to ONNX.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def pyramid(images: Tensor, scales: int) -> list[Tensor]:
    """images [B, 3, H, W] -> the same averaged over 1, 2, 4 … pixels a side: [B, 3, H / 2^k, W / 2^k]."""
    return [images if k == 0 else nn.functional.avg_pool2d(images, 2**k) for k in range(scales)]


def glimpse(levels: Sequence[Tensor], places: Tensor, side: int, photo: tuple[int, int]) -> Tensor:
    """Windows around places: [B, K, 3, side, side], the first at full resolution, each next twice as wide.

    levels: of `pyramid`, K of them; places: [B, 2]; photo: its (H, W) in pixels. Window k covers side 2^k pixels (Mnih
    et al., "Recurrent Models of Visual Attention", NIPS 2014, section 3, the glimpse sensor); between pixels it is
    bilinear, beyond the photo it is 0.
    """
    height, width = photo
    offset = torch.arange(side, dtype=places.dtype, device=places.device) - (side - 1) / 2
    windows = []
    for k, level in enumerate(levels):
        pixel = 2.0**k  # the level's pixel, in pixels of the photo
        axes = []
        for axis, (long, short) in enumerate(((width, level.shape[3]), (height, level.shape[2]))):
            centre = (places[:, axis] + 1) / 2 * long / pixel
            axes.append((centre[:, None] + offset) / short * 2 - 1)  # [B, side]
        x, y = axes[0][:, None, :], axes[1][:, :, None]
        grid = torch.stack([x + 0 * y, y + 0 * x], 3)  # [B, side, side, 2]
        windows.append(nn.functional.grid_sample(level, grid.to(level.dtype), align_corners=False))
    return torch.stack(windows, 1)


def boxes(places: Tensor, side: int, photo: tuple[int, int]) -> Tensor:
    """The windows of full resolution at places [..., 2] as (left, top, right, bottom) [..., 4], shares of the photo's
    sides; they may reach beyond it."""
    half = torch.tensor([side / photo[1], side / photo[0]], dtype=places.dtype, device=places.device) / 2
    centre = (places + 1) / 2
    return torch.cat([centre - half, centre + half], -1)


def spots(places: Tensor, cells: int, width: float) -> Tensor:
    """Places [B, T, 2] as Gaussian spots on a map, [B, T, cells, cells], 1 at the place itself.

    width: the standard deviation, as a share of the photo's side.
    """
    line = (torch.arange(cells, dtype=places.dtype, device=places.device) + 0.5) / cells * 2 - 1
    away = (line - places[..., None]) / (2 * width)  # [B, T, 2, cells]
    x, y = torch.exp(-0.5 * away.square()).unbind(2)
    return y[..., :, None] * x[..., None, :]


def peak_place(scores: Tensor) -> Tensor:
    """Scores [B, 1, h, w] -> the expected place [B, 2] under their softmax (a soft arg-max)."""
    height, width = scores.shape[2:]
    x, y = (
        (torch.arange(n, dtype=scores.dtype, device=scores.device) + 0.5) / n * 2 - 1 for n in (width, height)
    )
    cells = torch.stack([x.repeat(height), y.repeat_interleave(width)], 1)  # [h w, 2]
    return scores.flatten(1).softmax(1) @ cells


def reinforce(log_probability: Tensor, reward: Tensor, baseline: Tensor) -> tuple[Tensor, Tensor]:
    """Two losses: one whose gradient is an estimate of minus that of the expected reward, and the baseline's own.

    log_probability: [B, T] of each choice that was made; reward: [B, T] that each earned, or [B, 1] after the last,
    for all of them; baseline: [B, T], what was expected before each. The first is -mean_B sum_T log p (R - b), b held
    fixed (Williams, "Simple Statistical Gradient-Following Algorithms", 1992; Mnih et al. 2014, equations 2 and 3):
    with any b that does not know the choice its gradient is right on average, and a good b makes it less noisy. The
    second is mean (b - R)^2.
    """
    gain = reward - baseline
    return -(log_probability * gain.detach()).sum(1).mean(), gain.square().mean()
