"""NTS-Net: a navigator proposes parts, a teacher says how telling each is, a scrutiniser reads the best of them.

Yang et al., "Learning to Navigate for Fine-grained Classification", ECCV 2018. The paper trains with SGD (rate 1e-3,
divided by 10 twice, weight decay 1e-4) on 448 px photos, 16 a batch, and looks at parts at 224 px.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.base import MOST_ENTRIES, Method
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.parts import anchors, chosen, crop_side, crops, evident, narrowed, nms, side_by_side
from fieldmark.nn.pooling import l2_normalise

CARD = Card(
    cls="NTSNet",
    family="parts and stages",
    title="Navigator-teacher-scrutiniser network",
    year=2018,
    idea="a network scores boxes by how well their crops tell the class; the best crops are classified with the photo",
    source="Yang et al., Learning to Navigate for Fine-grained Classification, ECCV 2018",
    equation="logits = W [f(photo), f(part_1) … f(part_4)] + b; sum of max(0, 1 - s_i + s_j) over parts with L_i < L_j",
    needs=("pixels",),
    paper="CUB-200-2011 87.5% (ResNet-50, 448 px)",
    when="where several parts matter and photos are large; answers take more than twice as long",
)
#: Boxes on the maps at strides 1, 2 and 4 of the last one: areas as squares of these sides, of a photo of side 1,
#: times these factors, each as wide as high and in the two ratios.
SIDES = (48 / 448, 96 / 448, 192 / 448)
FACTORS = ((2 ** (1 / 3), 2 ** (2 / 3)), (2 ** (1 / 3), 2 ** (2 / 3)), (1.0, 2 ** (1 / 3), 2 ** (2 / 3)))
RATIOS = (2 / 3, 1.0, 3 / 2)
#: Channels of the navigator.
WIDTH = 128


class Options(base.Options):
    """Settings of NTS-Net."""

    parts: int = Field(4, ge=1, le=16, description="parts that the answer reads")
    proposals: int = Field(6, ge=1, le=32, description="parts by which the navigator learns, not fewer")
    overlap: float = Field(
        0.25, ge=0, le=1, description="how much parts may overlap (intersection over union)"
    )
    zoom: float = Field(
        0.5, gt=0, le=1, description="side at which a part is looked at, as share of the photo's"
    )
    scale: float = Field(
        3.0, gt=0, description="length of the features: how far a step of Adam moves the logits"
    )

    @model_validator(mode="after")
    def _enough(self) -> Options:
        if self.proposals < self.parts:
            raise ValueError(f"there are fewer proposals ({self.proposals}) than parts ({self.parts})")
        return self


class Looked(NamedTuple):
    """photo: [B, d]; parts: [B, K, d]; scores: [B, K] of the parts; boxes: [B, K, 4]; maps: the last one of photos and
    of parts [B K, C, h, w]."""

    photo: Tensor
    parts: Tensor
    scores: Tensor
    boxes: Tensor
    maps: tuple[Tensor, Tensor]


class NTSNet(Method):
    """z = [f(photo), f(part_1), …] (`side_by_side`), f the backbone's embedding, narrowed where z would be too wide.

    Parts are looked at by the same backbone, at a smaller size if it can take one.
    """

    Options = Options
    selects = True

    def build(self, backbone: Backbone) -> None:
        self.narrow = narrowed(backbone.embedding, MOST_ENTRIES // (1 + self.options.parts))
        width = min(backbone.embedding, MOST_ENTRIES // (1 + self.options.parts))
        self.navigator = Navigator(backbone.width)
        self.raw, self.teacher = (nn.Linear(width, self.task.classes) for _ in range(2))
        self.zoom = 1.0 if backbone.fixed else self.options.zoom

    def _widths(self, resample: nn.Module) -> list[int]:
        return super()._widths(resample) * (1 + self.options.parts)

    def parts(self, features: Features) -> list[Tensor]:
        return [l2_normalise(self.narrow(features.embedding))]

    def describe(self, images: Tensor) -> Tensor:
        return self.together(self.look(images, self.options.parts))

    def look(self, images: Tensor, parts: int) -> Looked:
        """At the photos, and at the so many parts that score best."""
        photo = self.backbone(images)
        scores, boxes = self.navigator(photo.last.detach())
        best = nms(boxes, scores.detach(), parts, self.options.overlap)
        at = chosen(boxes, best)
        side = crop_side(images.shape[-1], self.zoom, self.backbone.strides[-1])
        closer = self.backbone(crops(images, at, side))
        return Looked(
            self.narrow(photo.embedding),
            self.narrow(closer.embedding).unflatten(0, (-1, parts)),
            scores.gather(1, best),
            at,
            (photo.maps[-1], closer.maps[-1]),
        )

    def together(self, looked: Looked) -> Tensor:
        """Photo and best parts: [B, (1 + parts) d]."""
        parts = [looked.photo, *looked.parts[:, : self.options.parts].unbind(1)]
        return side_by_side(parts, self.options.scale)

    def attention(self, images: Tensor) -> Tensor:
        """What in the photo and in its parts speaks for the answer: [B, h, w]."""
        with torch.enable_grad():
            looked = self.look(images.detach().requires_grad_(), self.options.parts)
            photo, closer = looked.maps
            looks = [(photo, None), (closer, looked.boxes)]
            return evident(self.head(self.together(looked)), looks, images.shape[-1] // 4).detach()

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """The criterion of photo and parts together, of the photo, and of all proposals; and `ranking`."""
        looked, count = self.look(batch.x, self.options.proposals), self.options.proposals
        losses = self.judge(self.together(looked), batch.targets, criterion)
        photo, parts = (
            self.options.scale * l2_normalise(x) for x in (looked.photo, looked.parts.flatten(0, 1))
        )
        raw = criterion.of_logits(self.raw(photo), batch.targets)
        logits, targets = self.teacher(parts), batch.targets.repeat_interleave(count, 0)
        taught = criterion.of_logits(logits, targets)
        unsure = cross_entropy(logits.detach().float(), targets, reduction="none").view(-1, count)
        rank = ranking(looked.scores, unsure)
        return {
            **losses,
            "loss": losses["loss"] + raw + taught + rank,
            "raw": raw.detach(),
            "parts": taught.detach(),
            "rank": rank.detach(),
        }


class Navigator(nn.Module):
    """A map [B, C, h, w] -> scores [B, N] and the boxes [N, 4] that they are of."""

    def __init__(self, channels: int):
        super().__init__()
        self.down = nn.ModuleList(
            nn.Conv2d(channels if level == 0 else WIDTH, WIDTH, 3, stride=1 if level == 0 else 2, padding=1)
            for level in range(len(SIDES))
        )
        self.score = nn.ModuleList(nn.Conv2d(WIDTH, len(shapes(level)), 1) for level in range(len(SIDES)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, boxes = [], []
        for level, (down, score) in enumerate(zip(self.down, self.score, strict=True)):
            x = relu(down(x))
            scores.append(score(x).flatten(1).float())
            boxes.append(anchors(int(x.shape[2]), int(x.shape[3]), shapes(level)))
        return torch.cat(scores, 1), torch.cat(boxes).to(x.device)


@cache
def shapes(level: int) -> tuple[tuple[float, float], ...]:
    """Heights and widths of the boxes of a level."""
    return tuple(
        (SIDES[level] * factor * ratio**0.5, SIDES[level] * factor / ratio**0.5)
        for factor in FACTORS[level]
        for ratio in RATIOS
    )


def ranking(scores: Tensor, unsure: Tensor) -> Tensor:
    """Parts of which the teacher is surer must score higher: mean over photos of the sum of max(0, 1 - s_i + s_j) over
    pairs with L_i < L_j (the paper's navigation loss).

    scores: s [B, K]; unsure: L [B, K], losses of the parts.
    """
    better = unsure[:, :, None] < unsure[:, None, :]
    return (relu(1 - scores[:, :, None] + scores[:, None, :]) * better).sum() / len(scores)
