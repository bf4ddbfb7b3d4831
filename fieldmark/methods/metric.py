"""Metric learning beside classification: photos of a class near each other, those of others far away."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fieldmark.losses import contrastive, triplet
from fieldmark.losses.combine import Criterion
from fieldmark.losses.targets import pure
from fieldmark.methods import Card, base
from fieldmark.methods.plain import Plain
from fieldmark.methods.task import Batch

CARD = Card(
    cls="Metric",
    family="losses",
    title="Metric learning",
    year=2017,
    idea="photos of a class are drawn together and those of others pushed apart, by a triplet or contrastive loss "
    "beside cross-entropy",
    source="Hermans et al., In Defense of the Triplet Loss, 2017; Hadsell et al., CVPR 2006 (contrastive)",
    equation="loss = CE + w mean_i max(0, m + max_own |z_i - z_j| - min_other |z_i - z_k|)",
    needs=("labels",),
    sampler="paired",
    when="to search for similar photos, or to add classes later: near then means of one class",
)


class Metric(Plain):
    """As `plain`: the loss is taken of the descriptor itself, whose rows have unit length.

    So what is learned is what search, new classes and the head all look at, and nothing is added to the network.
    (A part of the user's own loss, as in ``--loss cross_entropy+triplet``, looks at the learned projection.)
    """

    class Options(base.Options):
        loss: Literal["triplet", "contrastive"] = Field(
            "triplet", description="triplet (batch-hard) or contrastive"
        )
        margin: float | None = Field(
            None,
            ge=0,
            le=2,
            description="of distances, which are 0 to 2; if not given 0.2 (triplet) or 1 (contrastive)",
        )
        weight: float = Field(1.0, ge=0, le=100, description="weight of the metric loss beside the other")

    def distances(self, z: Tensor, labels: Tensor) -> Tensor:
        """Descriptors [B, d] and class numbers [B] -> the metric loss, a scalar."""
        if self.options.loss == "triplet":
            margin = triplet.MARGIN if self.options.margin is None else self.options.margin
            return triplet.triplet(z, labels, margin)
        margin = contrastive.MARGIN if self.options.margin is None else self.options.margin
        return contrastive.contrastive(z, labels, margin)

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        z = self.describe(batch.x)
        losses = self.judge(z, batch.targets, criterion)
        labels, rows = pure(batch.targets)
        with torch.autocast(z.device.type, enabled=False):
            wide = z.float()
            value = self.distances(wide, labels) if rows is None else self.distances(wide[rows], labels[rows])
        losses["loss"] = losses["loss"] + self.options.weight * value
        return {**losses, "metric": value.detach()}
