"""Photos cut into n x n patches that change places, and where each of them came from.

An order is [B, n n]: entry k is the number of the patch that comes to place k, both counted row by row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shuffled(images: Tensor, order: Tensor) -> Tensor:
    """Photos [B, C, S, S] with their patches in this order [B, n n].

    A patch has floor(S / n) pixels a side; what is left over at the photo's edges stays where it is. Photos of fewer
    than n pixels stay as they are.
    """
    n = round(order.shape[1] ** 0.5)
    batch, channels, height, width = images.shape
    h, w = height // n, width // n
    if not h or not w:
        return images
    top, left = (height - n * h) // 2, (width - n * w) // 2
    inner = images[:, :, top : top + n * h, left : left + n * w]
    patches = inner.reshape(batch, channels, n, h, n, w).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    patches = patches[torch.arange(batch, device=images.device)[:, None], order]
    inner = patches.unflatten(1, (n, n)).permute(0, 3, 1, 4, 2, 5).reshape(inner.shape)
    out = images.clone()
    out[:, :, top : top + n * h, left : left + n * w] = inner
    return out


def any_order(batch: int, n: int, device: torch.device | None = None) -> Tensor:
    """For each photo one of all orders by chance, from torch's generator: [B, n n].

    The jigsaw of Du et al., "Fine-Grained Visual Classification via Progressive Multi-Granularity Training of Jigsaw
    Patches", ECCV 2020, section 3.3.
    """
    return torch.rand(batch, n * n, device=device).argsort(1)


def near_order(batch: int, n: int, reach: float, device: torch.device | None = None) -> Tensor:
    """Orders in which patches change places with their neighbours only: [B, n n].

    In each row patch i gets the number i + r, r even between -reach and reach, and the row is sorted by it; then each
    column likewise. So no patch moves 2 reach places or more along its row, nor along its column (Chen et al.,
    "Destruction and Construction Learning for Fine-Grained Image Recognition", CVPR 2019, equations 1 and 2).
    """
    place = torch.arange(n, device=device, dtype=torch.float32)

    def moves() -> Tensor:
        """For B n lines, which of its n entries comes to each place: [B, n, n]."""
        return (place + reach * (2 * torch.rand(batch, n, n, device=device) - 1)).argsort(2)

    patches = torch.arange(n * n, device=device).view(1, n, n).expand(batch, -1, -1)
    rows = patches.gather(2, moves())
    return rows.gather(1, moves().transpose(1, 2)).flatten(1)


def origins(order: Tensor) -> Tensor:
    """Where the patch at each place came from: [B, n n] -> coordinates (x, y) of its middle, [B, 2, n, n].

    From -1 to 1 across the photo, as in `torch.nn.functional.grid_sample`.
    """
    n = round(order.shape[1] ** 0.5)
    x, y = order % n, order // n
    return ((2 * torch.stack([x, y], 1) + 1) / n - 1).unflatten(2, (n, n))
