"""Boxes around what a map marks, crops of photos at boxes, and photos without what a map marks.

A box is (left, top, right, bottom) as shares of the photo's sides, from 0 to 1. All of it works on batches of any
size without loops, and exports to ONNX.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: The box of a whole photo.
WHOLE = (0.0, 0.0, 1.0, 1.0)


def of_peak(maps: Tensor, share: Tensor | float) -> Tensor:
    """That share ([B] or one for all) of each map's largest value: [B, h, w] -> [B]."""
    return maps.amax((1, 2)) * share


def enlarged(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Maps [B, h, w] at another size [B, H, W], bilinear: their edges fall between the cells."""
    target = (size, size) if isinstance(size, int) else size
    return nn.functional.interpolate(maps[:, None], size=target, mode="bilinear", align_corners=False)[:, 0]


def boxes_above(maps: Tensor, threshold: Tensor | float, pad: Tensor | float = 0.0) -> Tensor:
    """Smallest boxes around all cells that are above the threshold: maps [B, h, w] -> [B, 4].

    Cell i of w covers the shares i / w to (i + 1) / w. threshold, pad: [B], or one for all; each side moves outwards
    by ``pad``, at most to the photo's edge. Where no cell is above (a map of zeros or NaN), the box is the photo.
    """
    above = maps > _each(threshold, maps)
    left, right = _extent(above.any(1))
    top, bottom = _extent(above.any(2))
    boxes = torch.stack([left, top, right, bottom], 1).to(maps.dtype)
    outwards = torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=maps.dtype, device=maps.device)
    more = pad[:, None] if isinstance(pad, Tensor) else pad
    return torch.where((right > left)[:, None], (boxes + more * outwards).clamp(0, 1), whole(boxes))


def around(boxes: Tensor) -> Tensor:
    """The smallest box around all of a photo's boxes: [B, K, 4] -> [B, 4]; NaN are none of them, and mean that there
    is none."""
    none = ~boxes.isfinite().all(2, keepdim=True)
    low = boxes[..., :2].masked_fill(none, torch.inf).amin(1)
    high = boxes[..., 2:].masked_fill(none, -torch.inf).amax(1)
    return torch.cat([low, high], 1).masked_fill(none.all(1), torch.nan)


def whole(boxes: Tensor) -> Tensor:
    """The box of a whole photo for each of these [B, 4]."""
    return torch.tensor(WHOLE, dtype=boxes.dtype, device=boxes.device).expand_as(boxes)


def _extent(marked: Tensor) -> tuple[Tensor, Tensor]:
    """Where the first marked cell begins and the last one ends, as shares: [B, n] bool -> [B], [B]; 1 and 0 where
    none is marked."""
    count = marked.shape[1]
    cell = torch.arange(count, device=marked.device, dtype=torch.float32)
    first = torch.where(marked, cell, float(count)).amin(1)
    last = torch.where(marked, cell + 1, 0.0).amax(1)
    return first / count, last / count


def _each(value: Tensor | float, maps: Tensor) -> Tensor | float:
    return value.to(maps.dtype)[:, None, None] if isinstance(value, Tensor) else value


def crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crops resized to a square: images [B, C, H, W], boxes [B, 4] -> [B, C, size, size].

    Bilinear; a point outside the photo has the colour of the nearest edge. Both the images and the boxes get a
    gradient (Jaderberg et al., "Spatial Transformer Networks", NeurIPS 2015, equations 1 and 5). The whole photo at
    its own size is the photo. Crops much larger than ``size`` alias: nothing is averaged.
    """
    steps = (torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5) / size
    left, top, right, bottom = boxes[:, :, None].unbind(1)  # [B, 1] each
    x = (left + (right - left) * steps)[:, None, :].expand(-1, size, -1)
    y = (top + (bottom - top) * steps)[:, :, None].expand(-1, -1, size)
    grid = torch.stack([x, y], 3) * 2 - 1
    return nn.functional.grid_sample(
        images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )


def kept(maps: Tensor, threshold: Tensor | float, size: int | tuple[int, int]) -> Tensor:
    """1 where an enlarged map is not above the threshold, else 0: maps [B, h, w] -> [B, 1, H, W].

    threshold: [B], or one for all. Where nothing would be left, everything is: a constant map marks nothing.
    """
    below = ~(enlarged(maps, size) > _each(threshold, maps))
    below = below | ~below.any(2, keepdim=True).any(1, keepdim=True)
    return below[:, None].to(maps.dtype)


def drop(images: Tensor, maps: Tensor, threshold: Tensor | float) -> Tensor:
    """Photos with zeros where their map is above the threshold: images [B, C, H, W], maps [B, h, w] -> images."""
    return images * kept(maps, threshold, (images.shape[2], images.shape[3])).to(images.dtype)


def covered(boxes: Tensor, rows: int, columns: int) -> Tensor:
    """The share of each cell that lies in a box: [B, 4] -> [B, rows, columns]."""

    def along(low: Tensor, high: Tensor, count: int) -> Tensor:
        cell = torch.arange(count, device=boxes.device, dtype=boxes.dtype)
        start, end = low[:, None] * count, high[:, None] * count
        return (torch.minimum(end, cell + 1) - torch.maximum(start, cell)).clamp(0, 1)

    left, top, right, bottom = boxes.unbind(1)
    return along(top, bottom, rows)[:, :, None] * along(left, right, columns)[:, None, :]
