"""Mutual-channel loss: each class has channels of its own, which all must tell it and look at different places."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.plain import Plain
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone
from fieldmark.runtime.errors import FieldmarkError

CARD = Card(
    cls="MCLoss",
    family="losses",
    title="Mutual-channel loss",
    year=2020,
    idea="every class has a few channels of its own: a part of them must suffice to tell it, and each must look "
    "elsewhere",
    source="Chang et al., The Devil is in the Channels: Mutual-Channel Loss, IEEE Trans. Image Processing 2020",
    equation="loss = CE + a CE(mean max_xi masked maps) + b (1 - sum max_xi softmax_hw maps / xi)",
    when="where marks lie at several places of the object; its author says that it does not suit fine-tuning",
)
#: Channels of all classes together.
MOST_CHANNELS = 4096


def discriminality(maps: Tensor, channels: int, keep: Tensor) -> Tensor:
    """Scores [B, C]: mean over positions of the largest of a class's channels that are kept.

    maps: [B, C channels, H, W], a class's channels side by side, 0 and more; keep: [C channels] bool. Channel
    attention, cross-channel max pooling and global average pooling in the paper's words.
    """
    groups = (maps * keep[:, None, None]).unflatten(1, (-1, channels))
    return groups.amax(2).mean((2, 3))


def diversity(maps: Tensor, channels: int) -> Tensor:
    """How differently a class's channels look, mean over photos and classes: 1 / channels (all alike) to 1.

    maps: [B, C channels, H, W]. Each channel is a softmax over positions; their maximum over a class's channels,
    summed over positions, is the paper's h, here divided by its largest value.
    """
    where = maps.flatten(2).softmax(2).unflatten(1, (-1, channels))
    return where.amax(2).sum(2).mean() / channels


def kept(classes: int, channels: int, device: torch.device) -> Tensor:
    """Half of each class's channels (rounded down) are left out, by chance: [classes channels] bool."""
    order = torch.rand(classes, channels).argsort(1)
    return (order >= channels // 2).flatten().to(device)


class MCLoss(Plain):
    """As `plain`, with channels of the classes beside it in training: xi a class, made of the last map by a 1x1
    convolution, batch norm and ReLU. They are left out where photos are answered.

    The paper takes the backbone's own channels, whose number must then suit the classes, and trains from scratch with
    weights of 1.5 and 20. Beside the cross-entropy of a pretrained backbone the second term would then weigh more than
    all else, so here they are 0.3 and 1. xi is smaller where all would be more than `MOST_CHANNELS`; with one a class
    the channels cannot differ, and the diversity is always 1.
    """

    class Options(base.Options):
        channels: int = Field(3, ge=1, le=16, description="xi, channels a class")
        discriminality: float = Field(
            0.3, ge=0, le=100, description="weight of the loss of each class's channels"
        )
        diversity: float = Field(
            1.0, ge=0, le=1000, description="weight of the loss of channels that look alike"
        )

    def build(self, backbone: Backbone) -> None:
        self.channels = min(self.options.channels, MOST_CHANNELS // self.task.classes)
        if not self.channels:
            raise FieldmarkError(
                f"mc_loss gives every class channels of its own: {MOST_CHANNELS} classes at most, not "
                f"{self.task.classes}; pairwise_confusion takes any number"
            )
        wide = self.task.classes * self.channels
        self.widen = nn.Sequential(
            nn.Conv2d(backbone.width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()
        )

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        features = self.backbone(batch.x)
        losses = self.judge(torch.cat(self.parts(features), 1), batch.targets, criterion)
        maps = self.widen(features.last).float()
        keep = kept(self.task.classes, self.channels, maps.device)
        own = criterion.of_logits(discriminality(maps, self.channels, keep), batch.targets)
        alike = 1 - diversity(maps, self.channels)
        added = self.options.discriminality * own + self.options.diversity * alike
        losses["loss"] = losses["loss"] + added
        return {**losses, "discriminality": own.detach(), "alike": alike.detach()}
