"""Centre loss: photos of one class near that class's centre, which follows them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: How fast centres follow: the paper's alpha (section 4.1).
RATE = 0.5


def center(embedding: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """Mean over photos of |x_i - c_(y_i)|^2 / 2; 0 for no photos.

    embedding: x [B, E]; labels: y [B] class numbers; centers: c [C, E] (Wen et al., "A Discriminative Feature
    Learning Approach for Deep Face Recognition", ECCV 2016, equation 2, there summed over the batch).
    """
    away = embedding - centers.to(embedding.dtype)[labels]
    return 0.5 * away.square().sum() / max(len(labels), 1)


@torch.no_grad()
def moved(centers: Tensor, embedding: Tensor, labels: Tensor, rate: float = RATE) -> Tensor:
    """Centres [C, E] after a step: c_j - rate sum_i [y_i = j] (c_j - x_i) / (1 + n_j), n_j photos of class j.

    Equation 4 and the update of the paper's algorithm 1. Rows of the embedding that are not finite are left
    out. Sums over all processes, where there are several, so that every one keeps the same centres.
    """
    x = embedding.detach().to(centers.dtype)
    usable = x.isfinite().all(1)
    member = torch.zeros(len(x), len(centers), dtype=x.dtype, device=x.device)
    member = member.scatter_(1, labels[:, None], 1.0) * usable[:, None]
    sums = torch.cat([member.T @ x.where(usable[:, None], 0.0), member.sum(0)[:, None]], 1)  # [C, E + 1]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    total, count = sums[:, :-1], sums[:, -1:]
    return centers - rate * (count * centers - total) / (1 + count)


class Center(nn.Module):
    """`center` with its centres, zeros at first. In training a step moves them after the loss was taken."""

    centers: Tensor

    def __init__(self, classes: int, embedding: int, rate: float = RATE):
        super().__init__()
        self.rate = rate
        self.register_buffer("centers", torch.zeros(classes, embedding))

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """embedding [B, E], labels [B] -> scalar."""
        loss = center(embedding, labels, self.centers)
        if self.training:
            self.centers.copy_(moved(self.centers, embedding, labels, self.rate))
        return loss
