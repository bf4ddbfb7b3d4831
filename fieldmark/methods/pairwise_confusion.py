"""Pairwise confusion: photos of two classes may not be told apart with too much certainty."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.plain import Plain
from fieldmark.methods.task import Batch

CARD = Card(
    cls="PairwiseConfusion",
    family="losses",
    title="Pairwise confusion",
    year=2018,
    idea="pairs of photos of two classes are penalised for very different answers, so that none is learned by heart",
    source="Dubey et al., Pairwise Confusion for Fine-Grained Visual Classification, ECCV 2018",
    equation="loss = CE + lambda / B sum over random pairs of two classes |p_1 - p_2|, lambda = 0.1 C",
    paper="CUB-200-2011 86.9% (DenseNet-161)",
    when="with few photos a class: it works against overfitting and costs nothing",
)


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """1 / B sum over pairs of [y_1 != y_2] |p_1 - p_2|: photo i and photo i + B / 2 are a pair.

    logits: [B, C]; labels: [B] class numbers; p: softmax of the logits. The distance is Euclidean, as in the
    authors' training. A last photo without partner is left out; 0 for fewer than two.
    """
    half = len(labels) // 2
    p = logits.float().softmax(1)
    square = (p[:half] - p[half : 2 * half]).square().sum(1)
    distance = square.clamp_min(1e-12).sqrt()  # a finite gradient for equal answers
    return (distance * (labels[:half] != labels[half : 2 * half])).sum() / max(len(labels), 1)


class PairwiseConfusion(Plain):
    """As `plain`, with `confusion` beside the loss. Nothing is added to the network.

    The pairs are drawn at random within the batch. The authors find the weight best at 0.1 to 0.2 times the number
    of classes: with it answers stay unsure, at about 14 times chance, and the temperature sets them right.
    """

    class Options(base.Options):
        weight: float = Field(
            0.1, ge=0, le=10, description="weight of the confusion, times the number of classes"
        )

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        losses = super().training_step(batch, criterion)
        order = torch.randperm(len(batch.targets)).to(batch.targets.device)
        value = confusion(losses["logits"][order], batch.labels[order])
        losses["loss"] = losses["loss"] + self.options.weight * self.task.classes * value
        return {**losses, "confusion": value.detach()}
