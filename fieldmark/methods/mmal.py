"""MMAL: the photo, the thing in it, and the thing's parts, read by one backbone and one classifier.

Zhang et al., "Multi-branch and Multi-scale Attention Learning for Fine-Grained Visual Categorization", MMM 2021. The
paper trains with SGD (rate 1e-3, times 0.1 after 60 epochs, weight decay 1e-4) on 448 px photos, 6 a batch, and looks
at parts at 224 px. Nothing but the classifier is learned anew: boxes come from what the maps hold.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.base import Method
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.components import largest_component
from fieldmark.nn.crops import boxes_above, crop, enlarged
from fieldmark.nn.parts import activation, chosen, crop_side, crops, evident, nms, windows
from fieldmark.nn.pooling import l2_normalise

CARD = Card(
    cls="MMAL",
    family="parts and stages",
    title="Multi-branch and multi-scale attention learning",
    year=2021,
    idea="the object is where the last two maps are most active; its crop is classified, and in training its most "
    "active windows as well",
    source="Zhang et al., Multi-branch and Multi-scale Attention Learning, MMM 2021",
    equation="box around (largest part of {A > mean A}) and {A' > mean A'}, A = sum_k X_k; logits = W f(crop) + b",
    needs=("pixels",),
    paper="CUB-200-2011 89.6% (ResNet-50, 448 px)",
    when="where one object stands before a plain background, and training may take four times as long",
)
#: Windows of parts, in cells (height, width) of a map of 14 x 14, in three groups, and how many of each are kept.
GRID = 14
GROUPS = (
    ((4, 4), (3, 5), (5, 3)),
    ((6, 6), (5, 7), (7, 5)),
    ((8, 8), (6, 10), (10, 6), (7, 9), (9, 7), (7, 10), (10, 7)),
)
KEPT = (2, 3, 2)
#: A map marks what is above its mean by this share of it: a constant one marks nothing.
ABOVE = 1e-3


class Options(base.Options):
    """Settings of MMAL."""

    overlap: float = Field(
        0.25, ge=0, le=1, description="how much parts may overlap (intersection over union)"
    )
    zoom: float = Field(
        0.5, gt=0, le=1, description="side at which a part is looked at, as share of the photo's"
    )
    scale: float = Field(
        3.0, gt=0, description="length of the features: how far a step of Adam moves the logits"
    )


class Looked(NamedTuple):
    """photo, thing: features [B, d]; boxes: [B, 4] of the thing; closer: what its crop, `closer_photo`, looked like to
    the backbone."""

    photo: Tensor
    thing: Tensor
    boxes: Tensor
    closer: Features
    closer_photo: Tensor


class MMAL(Method):
    """z = f(crop of the thing), f the backbone's embedding; with ``tta`` the mean of f(photo) and f(crop).

    The paper compares the maps of ResNet-50's last two blocks, both of the last stage; backbones give one map a stage,
    so here the other one is mostly of the stage before.
    """

    Options = Options
    selects = True

    def build(self, backbone: Backbone) -> None:
        # Where a layer follows the last stage, the two are compared; else the last two stages.
        self.before = -1 if backbone.width != backbone.channels[-1] else -2
        if len(backbone.channels) < 2:
            self.before = -1
        self.zoom = 1.0 if backbone.fixed else self.options.zoom

    def parts(self, features: Features) -> list[Tensor]:
        return [self.options.scale * l2_normalise(features.embedding)]

    def read(self, features: Features) -> Tensor:
        """[B, d]."""
        return self.parts(features)[0]

    def describe(self, images: Tensor) -> Tensor:
        looked = self.look(images)
        return (looked.photo + looked.thing) / 2 if self.tta else looked.thing

    def look(self, images: Tensor) -> Looked:
        """At the photos, and at the thing in each."""
        photo = self.backbone(images)
        boxes = thing(photo.last.detach(), photo.maps[self.before].detach())
        closer_photo = crop(images, boxes, images.shape[-1])
        closer = self.backbone(closer_photo)
        return Looked(self.read(photo), self.read(closer), boxes, closer, closer_photo)

    def attention(self, images: Tensor) -> Tensor:
        """What in the crop speaks for the answer: [B, h, w]."""
        with torch.enable_grad():
            looked = self.look(images.detach().requires_grad_())
            looks = [(looked.closer.maps[-1], looked.boxes[:, None])]
            return evident(self.head(looked.thing), looks, images.shape[-1] // 4).detach()

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """The criterion of photos, of things and of their parts, all by the one classifier."""
        looked = self.look(batch.x)
        boxes = parts_of(looked.closer.last.detach(), self.options.overlap)
        side = crop_side(batch.x.shape[-1], self.zoom, self.backbone.strides[-1])
        parts = self.read(self.backbone(crops(looked.closer_photo, boxes, side)))
        losses = self.judge(looked.thing, batch.targets, criterion)
        raw = criterion.of_logits(self.head(looked.photo), batch.targets)
        many = criterion.of_logits(self.head(parts), batch.targets.repeat_interleave(sum(KEPT), 0))
        return {
            **losses,
            "loss": losses["loss"] + raw + many,
            "raw": raw.detach(),
            "parts": many.detach(),
        }


def thing(last: Tensor, before: Tensor) -> Tensor:
    """Boxes [B, 4] around what both maps mark: where each is more active than in the mean, of the last one the largest
    component. before: of any size. Where they agree on nothing the box is the photo.
    """
    second = enlarged(activation(before.float()), (int(last.shape[2]), int(last.shape[3])))
    both = largest_component(busy(activation(last.float()))) & busy(second)
    return boxes_above(both.float(), 0.5)


def busy(maps: Tensor) -> Tensor:
    """Above the mean: [B, h, w] -> bool."""
    return maps > maps.mean((1, 2), keepdim=True) * (1 + ABOVE)


def parts_of(x: Tensor, overlap: float) -> Tensor:
    """Boxes [B, 7, 4] of the windows in which a map [B, C, h, w] is most active, group by group."""
    maps, (height, width) = activation(x.float()), x.shape[2:]
    found = []
    for shapes, keep in zip(GROUPS, KEPT, strict=True):
        sizes = {(max(1, round(h * height / GRID)), max(1, round(w * width / GRID))) for h, w in shapes}
        several = [windows(maps, h, w) for h, w in sorted(sizes)]
        boxes, scores = torch.cat([b for b, _ in several]), torch.cat([s for _, s in several], 1)
        found.append(chosen(boxes, nms(boxes, scores, keep, overlap)))
    return torch.cat(found, 1)
