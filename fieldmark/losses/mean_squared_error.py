"""Mean squared error between the probabilities and the target."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fieldmark.losses.targets import check, distribution


def mean_squared_error(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, weight: Tensor | None = None
) -> Tensor:
    """Mean over photos of w(q) sum_c (softmax(logits)_c - q_c)^2, from 0 to 2: Brier's score.

    logits: [B, C]; targets: [B] class numbers or [B, C] shares; q: the smoothed target as in
    `cross_entropy`; weight: [C], a photo weighs w(q) = sum_c w_c q_c (Brier, "Verification of Forecasts
    Expressed in Terms of Probability", Monthly Weather Review 1950, equation 2). Of the probabilities, not of
    the logits: they are what a user gets, the score is least where they are right, and logit adjustment
    and mixup mean the same here as in cross-entropy. The price: the gradient fades on photos that are wrong
    with certainty, and is C / 2 times smaller than cross-entropy's at the start.
    Raises ValueError for shapes that do not belong together or an e outside [0, 1).
    """
    check(logits, targets, label_smoothing, weight)
    q = distribution(targets, logits, label_smoothing)
    error = (torch.softmax(logits, dim=1) - q).square().sum(1)
    return (error if weight is None else error * (q @ weight.to(logits.dtype))).mean()


class MeanSquaredError(nn.Module):
    """`mean_squared_error` as a module. weight: [C]."""

    weight: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, weight: Tensor | None = None):
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits [B, C], targets [B] or [B, C] -> scalar."""
        return mean_squared_error(logits, targets, self.label_smoothing, self.weight)
