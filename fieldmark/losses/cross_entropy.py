"""Cross-entropy, with label smoothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over photos of -sum_c q_c log softmax(logits)_c, in nats.

    logits: [B, C]; labels: [B] class numbers. q = (1 - e) onehot(label) + e / C with e = ``label_smoothing``
    (Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, section 7). Raises ValueError for
    shapes that do not belong together or an e outside [0, 1).
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} are not [B, C] and [B]"
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}: it is a share, from 0 to below 1")
    log_p = torch.log_softmax(logits, dim=1)
    own = log_p.gather(1, labels[:, None])[:, 0]
    return -((1 - label_smoothing) * own + label_smoothing * log_p.mean(1)).mean()


class CrossEntropy(nn.Module):
    """`cross_entropy` as a module."""

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits [B, C], labels [B] -> scalar."""
        return cross_entropy(logits, labels, self.label_smoothing)
