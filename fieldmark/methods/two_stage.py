"""Two stages: find the thing, then look at it closely and at the whole photo.

Stage 1 is the class activation map of Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016,
cut at its mean; stage 2 classifies crop and photo together (as object and photo are in Xiao et al., "The Application of
Two-level Attention Models in Deep Convolutional Neural Network for Fine-grained Image Classification", CVPR 2015) and,
with ``mask``, sees nothing of the background. Where the data has boxes, the crops of training lie around them, and the
map is taught to mark what is in them, so that photos without a box are cropped likewise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.base import MOST_ENTRIES, Method
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.components import largest_component
from fieldmark.nn.crops import around, boxes_above, covered, crop, enlarged
from fieldmark.nn.parts import evident, narrowed, side_by_side
from fieldmark.nn.pooling import l2_normalise

CARD = Card(
    cls="TwoStage",
    family="parts and stages",
    title="Find, then look closely",
    year=2016,
    idea="a class activation map finds the object; its crop and the whole photo are classified together",
    source="Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016",
    equation="box around the largest part of {M > mean M}, M = sum_k w_ck X_k; logits = W [f(photo), f(crop)] + b",
    needs=("pixels",),
    uses=("boxes",),
    when="where one object fills little of the photo, the more so where the data has boxes",
)
#: A map marks what is above its mean by this share of its largest value: a constant one marks nothing.
ABOVE = 1e-3


class Options(base.Options):
    """Settings of the two stages."""

    pad: float = Field(
        0.05, ge=0, le=1, description="how much wider than the thing its crop is, as share of the photo"
    )
    mask: bool = Field(False, description="remove what lies around the thing, too, by the map's mask")
    boxes: float = Field(1.0, ge=0, description="weight of the loss by which the data's boxes teach the map")
    scale: float = Field(
        3.0, gt=0, description="length of the features: how far a step of Adam moves the logits"
    )


class Looked(NamedTuple):
    """z: [B, 2 d]; first: logits of stage 1 [B, C]; map: class activation map [B, h, w]; boxes: [B, 4] of the crops;
    maps: the last one of photo and of crop."""

    z: Tensor
    first: Tensor
    map: Tensor
    boxes: Tensor
    maps: tuple[Tensor, Tensor]


class TwoStage(Method):
    """z = [f(photo), f(crop)] (`side_by_side`), f the backbone's embedding."""

    Options = Options
    selects = True

    def build(self, backbone: Backbone) -> None:
        self.locator = nn.Linear(backbone.width, self.task.classes)
        self.narrow = narrowed(backbone.embedding, MOST_ENTRIES // 2)

    def _widths(self, resample: nn.Module) -> list[int]:
        return super()._widths(resample) * 2

    def parts(self, features: Features) -> list[Tensor]:
        return [l2_normalise(self.narrow(features.embedding))]

    def describe(self, images: Tensor) -> Tensor:
        return self.look(images).z

    def look(self, images: Tensor, classes: Tensor | None = None, boxes: Tensor | None = None) -> Looked:
        """Both stages. classes: [B] whose map is taken (default: what stage 1 answers); boxes: [B, 4] of the thing,
        NaN where it must be found."""
        side, photo = images.shape[-1], self.backbone(images)
        first = self.locator(photo.last.mean((2, 3)))
        rows = self.locator.weight[first.argmax(1) if classes is None else classes]
        found = (photo.last.float() * rows.float()[:, :, None, None]).sum(1)
        marked = marks(found.detach())
        at = boxes_above(marked.float(), 0.5)
        known = torch.zeros_like(at[:, 0], dtype=torch.bool)
        if boxes is not None:
            known = boxes.isfinite().all(1)
            at = torch.where(known[:, None], boxes.to(at.dtype), at)
        if self.options.mask:
            inside = enlarged(marked.float(), side)
            if boxes is not None:  # what is found of the thing there, or all of the box
                own = covered(at, side, side)
                some = (own * inside).amax((1, 2), keepdim=True) > 0.5
                inside = torch.where(known[:, None, None], torch.where(some, own * inside, own), inside)
            images = images * inside[:, None].to(images.dtype)
        at = torch.cat([at[:, :2] - self.options.pad, at[:, 2:] + self.options.pad], 1).clamp(0, 1)
        closer = self.backbone(crop(images, at, side))
        parts = [self.narrow(one.embedding) for one in (photo, closer)]
        z = side_by_side(parts, self.options.scale)
        return Looked(z, first, found, at, (photo.maps[-1], closer.maps[-1]))

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """As every method, and the class activation map ``attention`` [B, 1, h, w]."""
        return {**super().features(images), "attention": self.look(images).map.clamp_min(0)[:, None]}

    def attention(self, images: Tensor) -> Tensor:
        """What in the photo and in its crop speaks for the answer: [B, h, w]."""
        with torch.enable_grad():
            looked = self.look(images.detach().requires_grad_())
            photo, closer = looked.maps
            looks = [(photo, None), (closer, looked.boxes[:, None])]
            return evident(self.head(looked.z), looks, images.shape[-1] // 4).detach()

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """The criterion of both stages; where boxes are known, 1 - correlation of the map with the box."""
        known = None if batch.boxes is None else batch.boxes[..., :4]
        looked = self.look(batch.x, batch.labels, None if known is None else around(known))
        losses = self.judge(looked.z, batch.targets, criterion)
        first = criterion.of_logits(looked.first, batch.targets)
        losses = {**losses, "loss": losses["loss"] + first, "stage_1": first.detach()}
        if known is not None:
            taught = apart(looked.map, known)
            losses |= {"loss": losses["loss"] + self.options.boxes * taught, "boxes": taught.detach()}
        return losses


def marks(maps: Tensor) -> Tensor:
    """The thing: the largest component of what is above a map's mean, [B, h, w] -> bool."""
    level = maps.mean((1, 2)) + ABOVE * maps.abs().amax((1, 2))
    return largest_component(maps > level[:, None, None])


def apart(maps: Tensor, boxes: Tensor) -> Tensor:
    """Mean over photos with boxes of 1 - r, r the correlation over cells of a map [B, h, w] with the share of each
    cell that lies in a box, the largest of [B, K, 4]; 0 where no box is known (NaN).

    It is 0 just where the map has one value inside and a lower one outside, and its mean tells them apart.
    """
    known = boxes.isfinite().all(2).any(1)
    shares = covered(boxes.nan_to_num().flatten(0, 1).to(maps.dtype), *maps.shape[1:])
    inside = shares.unflatten(0, boxes.shape[:2]).amax(1)
    one, two = (x - x.mean((1, 2), keepdim=True) for x in (maps, inside))
    both = one.square().sum((1, 2)) * two.square().sum((1, 2))
    r = (one * two).sum((1, 2)) / both.clamp_min(1e-12).sqrt()
    usable = known & (two.abs().amax((1, 2)) > 1e-3)  # a box around the whole photo teaches nothing
    return ((1 - r) * usable).sum() / usable.sum().clamp_min(1)
