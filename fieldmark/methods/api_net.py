"""Attentive pairwise interaction: two photos are looked at together, and each is gated by what sets it apart."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.plain import Plain
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone

CARD = Card(
    cls="APINet",
    family="losses",
    title="Attentive pairwise interaction (API-Net)",
    year=2020,
    idea="in training each photo meets the most similar one of its class and of another, and is seen by what marks "
    "itself and by what marks the other",
    source="Zhuang, Wang, Qiao, Learning Attentive Pairwise Interaction, AAAI 2020",
    equation="x_m = MLP([x_1; x_2]), g_i = sigmoid(x_m x_i), self = x_i + x_i g_i, other = x_i + x_i g_j; "
    "loss = CE(x) + CE(self, other) + mean max(0, p_other - p_self + 0.05)",
    needs=("labels",),
    sampler="paired",
    when="where classes are confused in pairs, and each has several photos",
)
#: Descriptors of unit length that are nearer than this are of one and the same view of a photo.
SAME = 1e-4


def partners(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The most alike photo of the same class and of another for each photo, row numbers [B] and [B].

    z: [B, d]; labels: [B]; alike: least Euclidean distance. A photo that has none is its
    own partner; copies of it, as classes of few photos have them in a batch, are none.
    """
    distance = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
    own = torch.arange(len(z), device=z.device)
    same = labels[:, None] == labels
    found = []
    for allowed in (same & (distance > SAME), ~same):
        nearest = distance.masked_fill(~allowed, torch.inf).argmin(1)
        found.append(torch.where(allowed.any(1), nearest, own))
    return found[0], found[1]


def interact(x1: Tensor, x2: Tensor, mutual: nn.Module) -> tuple[Tensor, Tensor]:
    """Pairs [P, d] and [P, d] -> both seen through their own gate [2 P, d], and through the other's [2 P, d].

    mutual: [P, 2 d] -> what the two have in common and what not, [P, d]. The paper's equations 1 to 3.
    """
    common = mutual(torch.cat([x1, x2], 1))
    gate1, gate2 = torch.sigmoid(common * x1), torch.sigmoid(common * x2)
    return torch.cat([x1 + x1 * gate1, x2 + x2 * gate2]), torch.cat([x1 + x1 * gate2, x2 + x2 * gate1])


class APINet(Plain):
    """As `plain`, with pairs in training: the interaction is left out where photos are answered, as in the paper.

    loss = CE(photo alone) + CE(all four seen) + w mean max(0, p_other - p_self + margin), p the probability of the
    photo's class. The first term is not the paper's: it keeps the head right for photos as they are answered. The
    interaction sees descriptors scaled so that the mean square of an entry is 1.
    """

    class Options(base.Options):
        hidden: int = Field(512, ge=8, le=4096, description="width between the two layers of the interaction")
        dropout: float = Field(0.5, ge=0, lt=1, description="share of that width left out in training")
        margin: float = Field(
            0.05, ge=0, le=1, description="how much more probable the class must be by the own gate"
        )
        weight: float = Field(1.0, ge=0, le=100, description="weight of the ranking loss")

    def build(self, backbone: Backbone) -> None:
        width, hidden = backbone.embedding, self.options.hidden
        self.mutual = nn.Sequential(
            nn.Linear(2 * width, hidden), nn.Dropout(self.options.dropout), nn.Linear(hidden, width)
        )

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        z = self.describe(batch.x)
        losses = self.judge(z, batch.targets, criterion)
        near, far = partners(z.detach().float(), batch.labels)
        own = torch.arange(len(z), device=z.device).repeat(2)
        other = torch.cat([near, far])
        scale = z.shape[1] ** 0.5
        seen = interact(z[own] * scale, z[other] * scale, self.mutual)
        who = torch.cat([own, other]).repeat(2)  # the photo of each row
        logits = self.head(torch.cat(seen) / scale)
        pairs = criterion.of_logits(logits, batch.targets[who])
        p = logits.float().softmax(1).gather(1, batch.labels[who, None])[:, 0]
        by_self, by_other = p.chunk(2)
        rank = (by_other - by_self + self.options.margin).clamp_min(0).mean()
        losses["loss"] = losses["loss"] + pairs + self.options.weight * rank
        return {**losses, "pairs": pairs.detach(), "rank": rank.detach()}
