"""What the losses are told: class numbers [B], or a distribution over the classes for each photo [B, C]."""

from __future__ import annotations

import torch
from torch import Tensor

#: A soft target whose largest share is at least this is taken for one class (mixup that mixed nothing).
PURE = 0.999


def check(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, weight: Tensor | None = None
) -> None:
    """Raises ValueError unless shapes belong together and the share of smoothing lies in [0, 1)."""
    if logits.ndim != 2 or targets.shape not in (logits.shape[:1], logits.shape):
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} are not [B, C] and [B] or [B, C]"
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}: it is a share, from 0 to below 1")
    if weight is not None and weight.shape != logits.shape[1:]:
        raise ValueError(f"weight {tuple(weight.shape)} is not [C] of logits {tuple(logits.shape)}")


def distribution(targets: Tensor, logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """[B] class numbers or [B, C] shares -> q [B, C] = (1 - e) target + e / C, in the logits' dtype."""
    hard = targets.ndim == 1
    q = torch.zeros_like(logits).scatter_(1, targets[:, None], 1.0) if hard else targets.to(logits.dtype)
    return (1 - label_smoothing) * q + label_smoothing / logits.shape[1] if label_smoothing else q


def pure(targets: Tensor) -> tuple[Tensor, Tensor | None]:
    """[B] or [B, C] -> class numbers [B], and which rows [B] are one class only (None: all of them)."""
    if targets.ndim == 1:
        return targets, None
    share, labels = targets.max(1)
    return labels, share >= PURE
