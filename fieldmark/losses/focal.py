"""Focal loss: photos that are recognised already count less."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fieldmark.losses.targets import check, distribution

#: Best in the paper (section 5.1); 0 is cross-entropy.
GAMMA = 2.0


def focal(
    logits: Tensor,
    targets: Tensor,
    gamma: float = GAMMA,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean over photos of -sum_c w_c q_c (1 - p_c)^gamma log p_c with p = softmax(logits), in nats.

    logits: [B, C]; targets: [B] class numbers or [B, C] shares; q: the smoothed target as in
    `cross_entropy`; weight: [C], the paper's alpha (Lin et al., "Focal Loss for Dense Object Detection", ICCV
    2017, equation 5; there one class against the rest, here softmax; for soft targets the sum above is our
    choice: it is the paper's for pure ones). Raises ValueError for shapes that do not belong together,
    an e outside [0, 1), a negative gamma.
    """
    check(logits, targets, label_smoothing, weight)
    if gamma < 0:
        raise ValueError(f"gamma is {gamma}: it is 0 or more")
    log_p = torch.log_softmax(logits, dim=1)
    rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)  # 0^(gamma - 1) would be infinite
    share = distribution(targets, logits, label_smoothing)
    if weight is not None:
        share = share * weight.to(logits.dtype)
    return -(share * rest**gamma * log_p).sum(1).mean()


class Focal(nn.Module):
    """`focal` as a module. weight: [C]."""

    weight: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, weight: Tensor | None = None, gamma: float = GAMMA):
        super().__init__()
        self.label_smoothing, self.gamma = label_smoothing, gamma
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits [B, C], targets [B] or [B, C] -> scalar."""
        return focal(logits, targets, self.gamma, self.label_smoothing, self.weight)
