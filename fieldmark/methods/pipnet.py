"""Prototypes that nobody named: channels that mean the same in two views of a photo, few of them for a class."""

from __future__ import annotations

import torch
from pydantic import Field
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.base import Method
from fieldmark.methods.learner import Photos
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.prototypes import Most, Patches

CARD = Card(
    cls="PIPNet",
    family="interpretable",
    title="PIP-Net",
    year=2023,
    idea="each place is assigned to one of a few hundred learned prototypes; a class scores by those in the photo, "
    "with few weights, none negative",
    source="Nauta et al., PIP-Net, CVPR 2023",
    equation="p = softmax over channels, z_d = max p_d, o = W z with W >= 0; 5 align + 2 tanh + 2 CE(log(1 + o^2))",
    needs=("pixels",),
    paper="CUB-200-2011 84.3% (ConvNeXt-tiny, 224 px)",
    when="where people must see what an answer rests on, with few prototypes that classes share",
)
#: Spread of the logits of prototypes at first: a place belongs to few of them, as with pretrained channels.
SHARP = 4.0
#: What presences are multiplied by. The paper's scores learn at a rate 17 times ours (0.05), from weights of 1 +- 0.1:
#: with this factor on what they are weights of, 1/16 as much is the same at our rate.
GAIN = 16.0
FIRST = (1 / GAIN, 0.1 / GAIN)
_EPSILON = 1e-7
#: Photos that show a prototype.
SHOWN = 3


def align(one: Tensor, other: Tensor) -> Tensor:
    """Mean over places of -log(p . p'), p and p' [B, D, h, w] distributions over D; the mean of both directions, each
    with the other side held still (PIP-Net, equation 1)."""

    def toward(p: Tensor, still: Tensor) -> Tensor:
        return -((p * still.detach()).sum(1) + _EPSILON).log().mean()

    return (toward(one, other) + toward(other, one)) / 2


def diverse(z: Tensor) -> Tensor:
    """-mean_d log tanh(sum_b z_bd): every prototype is present in some photo of the batch (PIP-Net, equation 2).

    z: [B, D] presences.
    """
    return -(z.sum(0).tanh() + _EPSILON).log().mean()


def recolored(x: Tensor, strength: float) -> Tensor:
    """Images [B, 3, S, S] with a gain of 1 - s to 1 + s and an offset of -s to s for each photo's channel."""
    gain, offset = (2 * torch.rand(2, len(x), x.shape[1], 1, 1, device=x.device) - 1) * strength
    return x * (1 + gain) + offset


class PIPNet(Method):
    """One part: how present each prototype is [B, D], 0 to 1, times `GAIN`.

    The two views of a photo differ in colour alone, as in the paper, so that places correspond: they are made here
    from the one that comes, which needs pixels. In training the scores o give log(1 + o^2), in answers o itself,
    without presences below ``least``. Before the backbone learns, classes do not matter for a while: alignment sets
    in slowly, beside 5 times the second loss. Paper: channels of ConvNeXt without its last strides as prototypes;
    here a normalised 1x1 convolution makes them of any backbone's.
    """

    fitted = False
    selects = True

    class Options(base.Options):
        prototypes: int = Field(
            256, ge=2, le=4096, description="how many (paper: the backbone's 768 channels)"
        )
        align: float = Field(5.0, ge=0, description="weight: the same prototype at a place in both views")
        tanh: float = Field(2.0, ge=0, description="weight: every prototype somewhere in a batch")
        classify: float = Field(2.0, gt=0, description="weight of the classes' loss")
        pretrain: float = Field(
            0.3, ge=0, le=0.9, description="share of the steps of the new layers alone before classes matter"
        )
        color: float = Field(0.3, ge=0, le=1, description="how much the two views differ in colour")
        least: float = Field(0.1, ge=0, le=1, description="presences below this count nothing in answers")
        shrink: float = Field(6e-5, ge=0, description="taken from every score's weight at each step")

    def build(self, backbone: Backbone) -> None:
        width, count = backbone.width, self.options.prototypes
        convolution = nn.Conv2d(width, count, 1, bias=False)
        nn.init.normal_(convolution.weight, std=SHARP / width**0.5)
        self.assign = nn.Sequential(LayerNorm2d(width), convolution)
        self._scoring = True  # does the last step teach the scores?

    def add_head(self, classes: int, embedding: int, rank: int | None = None) -> None:
        """Non-negative weights. rank: is not heeded, for each weight has a meaning."""
        super().add_head(classes, embedding)
        assert isinstance(self.head, nn.Linear)
        nn.init.normal_(self.head.weight, *FIRST)
        nn.init.zeros_(self.head.bias)
        self.stepped()

    @torch.no_grad()
    def stepped(self) -> None:
        """Weights of the scores shrink, once classes matter, and are never negative."""
        assert isinstance(self.head, nn.Linear)
        self.head.weight.sub_(self.options.shrink * self._scoring).clamp_(min=0)
        self.head.bias.clamp_(min=0)

    def presence(self, features: Features) -> Tensor:
        """[B, D, h, w]: which prototype each place is, a distribution over them."""
        return self.assign(features.last).float().softmax(1)

    def parts(self, features: Features) -> list[Tensor]:
        most = self.presence(features).amax((2, 3))
        return [GAIN * torch.where(most < self.options.least, 0.0, most)]

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        o = self.options
        views = torch.cat([recolored(batch.x, o.color) for _ in range(2)])
        one, two = self.presence(self.backbone(views)).chunk(2)
        most = [view.amax((2, 3)) for view in (one, two)]
        aligned, apart = align(one, two), (diverse(most[0]) + diverse(most[1])) / 2
        z = GAIN * torch.cat(most)
        logits = self.head(z).square().log1p()
        embedding = self.projection(z) if criterion.needs_embedding else None
        losses = criterion(logits, torch.cat([batch.targets] * 2), embedding)
        self._scoring = batch.progress >= o.pretrain or any(
            p.requires_grad for p in self.backbone.parameters()
        )
        if not self._scoring:
            total = batch.progress / o.pretrain * aligned + 5 * apart
        else:
            total = o.align * aligned + o.tanh * apart + o.classify * losses["loss"]
        told = {"align": aligned.detach(), "tanh": apart.detach()}
        return {**losses, "loss": total, "logits": logits.unflatten(0, (2, -1)).mean(0), **told}

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Also ``attention`` [B, D, h, w]: where each prototype is, at the first scale."""
        seen = self.presence(self.backbone(self.resamplers[0](images)))
        return {**super().features(images), "attention": seen}

    @torch.no_grad()
    def patches(self, photos: Photos) -> Patches:
        """The photos in which each prototype is most present."""
        most = Most(SHOWN, self.options.least)
        for x, _ in photos():
            most.see(self.presence(self.backbone(x)))
        return most.patches()

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """Where the prototypes are that speak for the answer, weighted as there."""
        features = self.backbone(images)
        answer = self.head(self.parts(features)[0]).argmax(1)
        speaks: Tensor = self.head.weight[answer]  # type: ignore[index]
        return (speaks[:, :, None, None] * self.presence(features)).sum(1)
