"""Maps of several stages brought together: which ones, at which size, and side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fieldmark.nn.backbone import Backbone, Features


def levels(features: Features, count: int = 0) -> list[Tensor]:
    """The maps [B, C, H, W] of the last ``count`` stages, fine to coarse, the pooled one last; 0: of all stages.

    A backbone with fewer stages gives all that it has.
    """
    return [*features.maps[-count:-1], features.last] if count != 1 else [features.last]


def level_widths(backbone: Backbone, count: int = 0) -> list[int]:
    """Channels of `levels`."""
    return [*backbone.channels[-count:-1], backbone.width] if count != 1 else [backbone.width]


def area_weights(source: int, target: int, device: torch.device | None = None) -> Tensor:
    """[target, source]: what share of each of ``target`` equal parts of a line lies in each of ``source``."""
    lines = (torch.arange(n + 1, device=device) * (source * target // n) for n in (target, source))
    ends, cells = lines  # whole numbers
    overlap = torch.minimum(ends[1:, None], cells[1:]) - torch.maximum(ends[:-1, None], cells[:-1])
    return overlap.clamp_min(0) / source


def area_resize(x: Tensor, height: int, width: int) -> Tensor:
    """[B, C, H, W] -> [B, C, height, width]: the mean of what each new place covers, whatever the sizes.

    The mean of the map stays. Smaller maps are averaged, larger ones repeat their places. As two matrix products,
    so it exports for sizes that do not divide each other, which adaptive pooling does not.
    """
    for old, new, dim in ((x.shape[2], height, 2), (x.shape[3], width, 3)):
        old, new = int(old), int(new)
        if old == new:
            continue
        weights = area_weights(old, new, x.device).to(x.dtype)
        x = weights @ x if dim == 2 else x @ weights.T
    return x


def join(maps: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Maps [B, C_i, H_i, W_i], resized and side by side: [B, sum of C_i, height, width]."""
    return torch.cat([area_resize(x, height, width) for x in maps], 1)
