"""Contrastive loss: photos of one class together, those of two classes at least a margin apart."""

from __future__ import annotations

from torch import Tensor, nn

MARGIN = 1.0


def contrastive(embedding: Tensor, labels: Tensor, margin: float = MARGIN) -> Tensor:
    """mean of D_ij over pairs of one class + mean of max(0, margin - D_ij) over pairs of two.

    embedding: [B, E], brought to unit length here; labels: [B] class numbers; D: Euclidean distance, 0 to 2.
    Each mean is over the pairs that are above 0 in it. A batch without such pairs, or without photos, gives 0.
    After Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006,
    equation 4, in pytorch-metric-learning's form: there the two terms are squared and halved, here not, so
    that near pairs pull as hard as far ones.
    """
    from pytorch_metric_learning.losses import ContrastiveLoss  # a second to import

    return ContrastiveLoss(pos_margin=0.0, neg_margin=margin)(embedding, labels)


class Contrastive(nn.Module):
    """`contrastive` as a module."""

    def __init__(self, margin: float = MARGIN):
        super().__init__()
        self.margin = margin

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """embedding [B, E], labels [B] -> scalar."""
        return contrastive(embedding, labels, self.margin)
