"""Parts of photos: candidate boxes, which of them are kept, crops at them, and maps of crops back in the photo.

A box is (left, top, right, bottom) as shares of the photo's sides, as in `fieldmark.nn.crops`. All but
`evidence` works on batches of any size without loops over data, and exports to ONNX.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fieldmark.nn.crops import crop, enlarged
from fieldmark.nn.pooling import l2_normalise

# -- candidates


def anchors(rows: int, columns: int, shapes: Sequence[tuple[float, float]]) -> Tensor:
    """Boxes of each shape (height, width) around the centre of each cell: [shapes * rows * columns, 4].

    In the order of a score map [shapes, rows, columns]; what hangs over the photo's edge is cut off (Ren et al.,
    "Faster R-CNN", NeurIPS 2015, section 3.1.1).
    """
    y = (torch.arange(rows) + 0.5) / rows
    x = (torch.arange(columns) + 0.5) / columns
    centres = torch.stack(torch.meshgrid(y, x, indexing="ij"), 2)[None]  # [1, rows, columns, 2]
    half = torch.tensor(shapes)[:, None, None] / 2
    (top, left), (bottom, right) = (
        (centres - half).clamp(0, 1).unbind(3),
        (centres + half).clamp(0, 1).unbind(3),
    )
    return torch.stack([left, top, right, bottom], 3).flatten(0, 2)


def windows(maps: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Every window of so many cells, and the mean of the map in it: maps [B, h, w] -> boxes [N, 4], scores [B, N].

    N = (h - height + 1) (w - width + 1), row by row. A window larger than the map is cut to it.
    """
    rows, columns = maps.shape[1:]
    height, width = min(height, rows), min(width, columns)
    scores = nn.functional.avg_pool2d(maps[:, None], (height, width), stride=1).flatten(1)
    top = torch.arange(rows - height + 1, device=maps.device, dtype=maps.dtype)
    left = torch.arange(columns - width + 1, device=maps.device, dtype=maps.dtype)
    y, x = torch.meshgrid(top, left, indexing="ij")
    sides = [x / columns, y / rows, (x + width) / columns, (y + height) / rows]
    return torch.stack(sides, 2).flatten(0, 1), scores


# -- which of them


def overlap(one: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of one box [B, 4] with each of boxes [B, N, 4] -> [B, N]."""
    corner = torch.maximum(one[:, None, :2], boxes[..., :2])
    common = (torch.minimum(one[:, None, 2:], boxes[..., 2:]) - corner).clamp_min(0).prod(2)
    union = area(one)[:, None] + area(boxes) - common
    return common / union.clamp_min(1e-12)


def area(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...], as a share of the photo's."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def nms(boxes: Tensor, scores: Tensor, keep: int, threshold: float) -> Tensor:
    """Non-maximum suppression with a fixed number of boxes: indices [B, keep] of boxes [N, 4] or [B, N, 4].

    In each of ``keep`` rounds the box of the highest score [B, N] is taken, and those that overlap it by more than
    ``threshold`` are passed over. Where none is left, the best of those passed over follow; where there are fewer than
    ``keep`` boxes, the first is repeated.
    """
    every = boxes.expand(scores.shape[0], -1, -1)
    number = torch.arange(boxes.shape[-2], device=boxes.device)
    lowest = torch.full_like(scores, -torch.inf)
    free = torch.ones_like(scores, dtype=torch.bool)
    good, taken = free, []
    for _ in range(keep):
        pool = good | (free & ~good.any(1, keepdim=True))
        best = torch.where(pool, scores, lowest).argmax(1, keepdim=True)
        taken.append(best)
        free = free & (number != best)
        box = every.gather(1, best[:, :, None].expand(-1, -1, 4))[:, 0]
        good = good & free & (overlap(box, every) <= threshold)
    return torch.cat(taken, 1)


def chosen(boxes: Tensor, indices: Tensor) -> Tensor:
    """Boxes [N, 4] or [B, N, 4] at indices [B, K] -> [B, K, 4]."""
    return boxes.expand(indices.shape[0], -1, -1).gather(1, indices[:, :, None].expand(-1, -1, 4))


# -- looking at them


def crops(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """images [B, C, H, W] at boxes [B, K, 4] -> [B K, C, size, size], photo by photo."""
    return torch.stack([crop(images, boxes[:, k], size) for k in range(boxes.shape[1])], 1).flatten(0, 1)


def crop_side(side: int, share: float, stride: int) -> int:
    """Side in pixels of crops that are looked at: that share of the photo's side, up to a multiple of the stride."""
    return min(int(side), max(1, round(int(side) * share / stride)) * stride)


def inner(outer: Tensor, boxes: Tensor) -> Tensor:
    """Boxes [B, 4] within the crops at ``outer`` [B, 4], as boxes of the photos."""
    start, side = outer[:, :2], outer[:, 2:] - outer[:, :2]
    return torch.cat([start + side * boxes[:, :2], start + side * boxes[:, 2:]], 1)


def boxcar(boxes: Tensor, size: int, steepness: float = 10.0) -> Tensor:
    """Soft masks of boxes [B, 4], about 1 inside and 0 outside: [B, 1, size, size], with a gradient for the boxes.

    M = [h(x - left) - h(x - right)] [h(y - top) - h(y - bottom)] in pixels, h(x) = 1 / (1 + exp(-k x)), k the
    steepness (Fu et al., "Look Closer to See Better", CVPR 2017, section 3.2).
    """
    at = torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5
    left, top, right, bottom = (boxes * size)[:, :, None].unbind(1)
    across = torch.sigmoid(steepness * (at - left)) - torch.sigmoid(steepness * (at - right))
    down = torch.sigmoid(steepness * (at - top)) - torch.sigmoid(steepness * (at - bottom))
    return (down[:, :, None] * across[:, None, :])[:, None]


def paste(maps: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Maps of crops [B, h, w] where boxes [B, 4] say they lie in the photos: [B, size, size], 0 outside the boxes."""
    at = (torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5) / size
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    x = ((at - left) / (right - left).clamp_min(1e-6))[:, None, :].expand(-1, size, -1)
    y = ((at - top) / (bottom - top).clamp_min(1e-6))[:, :, None].expand(-1, -1, size)
    inside = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    grid = torch.stack([x, y], 3) * 2 - 1
    pasted = nn.functional.grid_sample(
        maps[:, None], grid.to(maps.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )
    return pasted[:, 0] * inside.to(maps.dtype)


def activation(x: Tensor) -> Tensor:
    """How much there is at each place, the sum over channels of |x|: [B, C, h, w] -> [B, h, w] (Wei et al., "Selective
    Convolutional Descriptor Aggregation", IEEE TIP 2017, there of maps after a ReLU)."""
    return x.abs().sum(1)


def evidence(logits: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """How much each place of maps [B', C, h, w] speaks for the classes answered: [B', h, w] each, 0 and more.

    Grad-CAM (Selvaraju et al., ICCV 2017, equations 1 and 2) of several looks at once: logits [B, C] must have been
    computed from the maps. A map that the answer does not go through gives its `activation`.
    """
    slopes = torch.autograd.grad(logits.amax(1).sum(), list(maps), allow_unused=True)
    return [
        activation(x.detach())
        if slope is None
        else (slope.mean((2, 3), keepdim=True) * x.detach()).sum(1).clamp_min(0)
        for x, slope in zip(maps, slopes, strict=True)
    ]


def evident(logits: Tensor, looks: Sequence[tuple[Tensor, Tensor | None]], size: int) -> Tensor:
    """The `evidence` of several looks at photos, as one map [B, size, size] of the photos.

    looks: maps [B K, C, h, w] and the boxes [B, K, 4] that they were cropped at (None: maps [B, C, h, w] of whole
    photos). What a crop shows lies in a smaller place, and so closer together.
    """
    total = logits.new_zeros(len(logits), size, size)
    for found, (_, boxes) in zip(evidence(logits, [maps for maps, _ in looks]), looks, strict=True):
        if boxes is None:
            total = total + enlarged(found, size)
            continue
        for k, one in enumerate(found.unflatten(0, (len(logits), -1)).unbind(1)):
            box = boxes[:, k].detach()
            total = total + paste(one, box, size) / area(box).clamp_min(1e-6)[:, None, None]
    return total


# -- their features


def side_by_side(parts: Sequence[Tensor], length: float) -> Tensor:
    """Features of P parts [B, d] each, brought to the same length and divided by P -> [B, P d].

    What a linear layer makes of it is the mean of what it would say of each part alone (`alone`).
    """
    return torch.cat([l2_normalise(part) for part in parts], 1) * (length / len(parts))


def alone(z: Tensor, part: int, parts: int) -> Tensor:
    """z [B, P d] of `side_by_side` with zeros in place of all parts but one, which counts P times."""
    width = z.shape[1] // parts
    own = z[:, part * width : (part + 1) * width] * parts
    return nn.functional.pad(own, (part * width, (parts - 1 - part) * width))


def narrowed(width: int, most: int) -> nn.Module:
    """[B, width] -> [B, most] by a linear layer, where the width is more than that."""
    return nn.Linear(width, most, bias=False) if width > most else nn.Identity()
