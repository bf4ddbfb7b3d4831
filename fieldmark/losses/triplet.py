"""Triplet loss, batch-hard: the farthest photo of the own class nearer than the nearest of another."""

from __future__ import annotations

from torch import Tensor, nn

MARGIN = 0.2


def triplet(embedding: Tensor, labels: Tensor, margin: float = MARGIN) -> Tensor:
    """Mean over anchors i of max(0, margin + max_{y_j = y_i} D_ij - min_{y_k != y_i} D_ik).

    embedding: [B, E], brought to unit length here; labels: [B] class numbers; D: Euclidean distance, 0 to 2.
    A photo that has no other of its class in the batch, or none of another class, is no anchor; a batch
    without anchors, or without photos, gives 0. Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for
    Person Re-Identification", 2017, equation 5 (there summed, and without the unit length).
    """
    if not len(labels):
        return embedding.sum()
    from pytorch_metric_learning.losses import TripletMarginLoss  # a second to import
    from pytorch_metric_learning.miners import BatchHardMiner
    from pytorch_metric_learning.reducers import MeanReducer

    hardest = BatchHardMiner()(embedding, labels)
    return TripletMarginLoss(margin=margin, reducer=MeanReducer())(embedding, labels, hardest)


class Triplet(nn.Module):
    """`triplet` as a module."""

    def __init__(self, margin: float = MARGIN):
        super().__init__()
        self.margin = margin

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """embedding [B, E], labels [B] -> scalar."""
        return triplet(embedding, labels, self.margin)
