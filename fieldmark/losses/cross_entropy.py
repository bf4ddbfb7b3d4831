"""Cross-entropy, with class weights, label smoothing and soft targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fieldmark.losses.targets import check, distribution


def cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, weight: Tensor | None = None
) -> Tensor:
    """Mean over photos of -sum_c w_c q_c log softmax(logits)_c, in nats.

    logits: [B, C]; targets: [B] class numbers, or [B, C] shares of the classes (as mixup gives);
    q = (1 - e) target + e / C with e = ``label_smoothing`` (Szegedy et al., "Rethinking the Inception
    Architecture", CVPR 2016, section 7); weight: [C], none: 1. The sum is divided by B, not by the batch's
    sum of weights: so gradients of micro-batches and of processes add up, and hard targets give what one-hot
    ones give. Raises ValueError for shapes that do not belong together or an e outside [0, 1).
    """
    check(logits, targets, label_smoothing, weight)
    log_p = torch.log_softmax(logits, dim=1)
    if targets.ndim == 1 and weight is None:
        own = log_p.gather(1, targets[:, None])[:, 0]
        return -((1 - label_smoothing) * own + label_smoothing * log_p.mean(1)).mean()
    share = distribution(targets, logits, label_smoothing)
    if weight is not None:
        share = share * weight.to(logits.dtype)
    return -(share * log_p).sum(1).mean()


class CrossEntropy(nn.Module):
    """`cross_entropy` as a module. weight: [C]."""

    weight: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, weight: Tensor | None = None):
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits [B, C], targets [B] or [B, C] -> scalar."""
        return cross_entropy(logits, targets, self.label_smoothing, self.weight)
