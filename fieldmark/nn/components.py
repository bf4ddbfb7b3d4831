"""Connected components of masks, on batches of any size and without loops over data, so that they export to ONNX."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

#: Rounds beyond h + w: spirals, the shapes that take longest, need 2 max(h, w) + 3.
MORE_ROUNDS = 8


def components(masks: Tensor, rounds: int | None = None) -> Tensor:
    """Number of the component that each cell belongs to: masks [B, h, w] bool -> [B, h, w] int64, 0 outside.

    Cells that touch at a side or a corner belong together; a component's number is 1 + the index of its last cell
    in reading order, so numbers have gaps. Each round every cell takes the largest number around it, then the number
    of the cell that this number names (label propagation with pointer jumping; Shiloach and Vishkin, "An O(log n)
    Parallel Connectivity Algorithm", 1982). rounds: default h + w + `MORE_ROUNDS`, enough for spirals and snakes;
    fewer may leave a winding component in pieces.
    """
    height, width = masks.shape[1:]
    inside = masks[:, None].float()  # single precision counts exactly up to 2^24 cells
    numbers = torch.arange(1, height * width + 1, device=masks.device, dtype=torch.float32)
    labels = numbers.view(1, 1, height, width) * inside
    nothing = torch.zeros_like(labels[:, 0, 0, :1])
    for _ in range(height + width + MORE_ROUNDS if rounds is None else rounds):
        flat = (max_pool2d(labels, 3, stride=1, padding=1) * inside).flatten(1)
        labels = torch.cat([nothing, flat], 1).gather(1, flat.long()).view_as(labels)
    return labels[:, 0].long()


def sizes(labels: Tensor) -> Tensor:
    """Cells in the component of each cell, 0 outside: labels [B, h, w] of `components` -> [B, h, w] int64."""
    flat = labels.flatten(1)
    counts = torch.zeros_like(torch.cat([flat[:, :1], flat], 1)).scatter_add(1, flat, torch.ones_like(flat))
    return (counts.gather(1, flat) * (flat > 0).long()).view_as(labels)


def largest_component(masks: Tensor, rounds: int | None = None) -> Tensor:
    """The component with the most cells (of equal ones the last): masks [B, h, w] bool -> the same; empty ones stay
    empty."""
    labels = components(masks, rounds)
    rank = sizes(labels) * (labels[0].numel() + 1) + labels
    return masks & (rank == rank.amax((1, 2), keepdim=True))
