"""FCOS: a detector without anchors, trained on boxes beside the classes of whole photos.

Every cell of a feature pyramid says which classes have a thing around it, how far the four sides of its box are, and
how near the cell is to the box's middle (Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", ICCV
2019, with GIoU and centre sampling as in their later version, arXiv 2006.09214). Pyramid, head, targets, losses and
suppression are torchvision's. Photos without boxes teach their class only, and the photo's own answer is that of a
linear head over the backbone's embedding and the pooled pyramid, so that it serves like every other method.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOS as Detector
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import FeaturePyramidNetwork, nms

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.base import MOST_ENTRIES, Found, Method
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.parts import narrowed
from fieldmark.nn.pooling import l2_normalise

CARD = Card(
    cls="FCOS",
    family="parts and stages",
    title="A detector trained on boxes (FCOS)",
    year=2019,
    idea="every cell of a pyramid says what lies around it, and where the sides of its box are",
    source="Tian et al., FCOS: Fully Convolutional One-Stage Object Detection, ICCV 2019",
    equation="focal(classes) + GIoU(sides) + BCE(centreness) + CE(photo); score = sqrt(p(class) centreness)",
    needs=("boxes", "labels"),
    when="where things are to be found, several a photo or of several classes, and photos come with boxes; then "
    "`fieldmark locate` gives its boxes",
)
#: A stage whose cells are more pixels apart than this is a level: 8, 16 and 32 in most networks.
FINE = 4
#: Channels of a group in group norms; sides of boxes in cells at first: the middle of what a level is taught.
GROUP, AT_FIRST = 32, 4.0
#: The photo's side in the detector's units: torchvision tells areas apart that differ by 8 or more.
SIDE = 1024
#: What the detector's outputs are, and its losses (that of ``cls_logits`` is called ``classification`` there).
LOSSES = {"cls_logits": "classes", "bbox_regression": "sides", "bbox_ctrness": "centreness"}
#: Boxes that overlap more than this are one (0.6 in the paper: half more boxes, on steel_defects no more precise);
#: boxes a photo.
SAME, MOST = 0.5, 100


class FCOS(Method):
    """Two parts: the backbone's embedding [B, F] and the pyramid, pooled level by level [B, L width].

    The levels are the last map of each stride above `FINE`: one for a plain vision transformer.
    """

    judged = False

    class Options(base.Options):
        width: int = Field(96, ge=32, le=512, multiple_of=GROUP, description="channels of pyramid and head")
        layers: int = Field(2, ge=1, le=4, description="convolutions in each branch of the head (paper: 4)")
        weight: float = Field(
            1.0, ge=0, le=100, description="of the detector's losses beside the photo's own"
        )
        scale: float = Field(
            3.0, gt=0, description="length of the features: how far a step of Adam moves the logits"
        )

    def build(self, backbone: Backbone) -> None:
        width = self.options.width
        last = {stride: number for number, stride in enumerate(backbone.strides)}  # of each stride
        self.levels = [n for stride, n in last.items() if stride > FINE] or [len(backbone.strides) - 1]
        pyramid: Any = FeaturePyramidNetwork(
            [backbone.channels[n] for n in self.levels],
            width,
            norm_layer=lambda c: nn.GroupNorm(c // GROUP, c),
        )
        pyramid.out_channels = width
        head = FCOSHead(width, 1, self.task.classes, self.options.layers)
        nn.init.constant_(head.regression_head.bbox_reg.bias, AT_FIRST)
        self.detector = Detector(
            pyramid, self.task.classes, head=head, nms_thresh=SAME, detections_per_img=MOST
        )
        self.narrow = narrowed(backbone.embedding, MOST_ENTRIES - len(self.levels) * width)

    def parts(self, features: Features) -> list[Tensor]:
        return self.pooled(features, self.pyramid(features))

    def pooled(self, features: Features, maps: list[Tensor]) -> list[Tensor]:
        """Both parts, from the pyramid's maps, of half the length each."""
        seen = torch.cat([one.relu().mean((2, 3)) for one in maps], 1)
        return [l2_normalise(z) * self.options.scale / 2 for z in (self.narrow(features.embedding), seen)]

    def pyramid(self, features: Features) -> list[Tensor]:
        """Maps [B, width, h, w] of every level, fine to coarse."""
        maps = {str(n): features.maps[n] for n in self.levels}
        return list(self.detector.backbone(maps).values())

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        features = self.backbone(batch.x)
        maps = self.pyramid(features)
        losses = self.judge(torch.cat(self.pooled(features, maps), 1), batch.targets, criterion)
        found = self.found(maps, batch.boxes)
        total = losses["loss"] + self.options.weight * sum(found.values())
        return {**losses, "loss": total, **{name: value.detach() for name, value in found.items()}}

    def found(self, maps: list[Tensor], boxes: Tensor | None) -> dict[str, Tensor]:
        """The detector's losses: of classes, sides and centreness, each a sum over cells per cell that lies in a
        box. boxes: as in `Batch`; views without any teach nothing, and without boxes at all the losses are 0 (but
        are computed, so that a step's time can be measured)."""
        said = {name: value.float() for name, value in self.detector.head(maps).items()}
        if boxes is None or not boxes.isfinite().any():
            return {LOSSES[name]: 0.0 * value.sum() for name, value in said.items()}
        cells, rows = cells_of(maps), boxes.isfinite().all(2).any(1)
        known = [own[own.isfinite().all(1)] for own in boxes[rows]]
        with torch.autocast(maps[0].device.type, enabled=False):
            losses = self.detector.compute_loss(
                [{"boxes": own[:, :4] * SIDE, "labels": own[:, 4].long()} for own in known],
                {name: value[rows] for name, value in said.items()},
                [torch.cat(cells)] * len(known),
                [len(level) for level in cells],
            )
        return {LOSSES.get(name, "classes"): value for name, value in losses.items()}

    @torch.no_grad()
    def boxes(self, images: Tensor, least: float = 0.05) -> list[Found]:
        """At most `MOST` a photo, the surest first, without those that overlap a surer one, of whichever class:
        look-alikes are named in the same place, and a thing is one of them."""
        maps = self.pyramid(self.backbone(images))
        cells, said = cells_of(maps), self.detector.head(maps)
        counts = [len(level) for level in cells]
        self.detector.score_thresh = least
        found = self.detector.postprocess_detections(
            {name: list(value.split(counts, 1)) for name, value in said.items()},
            [cells] * len(images),
            [(SIDE, SIDE)] * len(images),
        )
        kept = [nms(one["boxes"], one["scores"], SAME) for one in found]
        return [
            Found(one["boxes"][rows] / SIDE, one["scores"][rows], one["labels"][rows])
            for one, rows in zip(found, kept, strict=True)
        ]


def cells_of(maps: list[Tensor]) -> list[Tensor]:
    """Every level's cells as boxes in units of `SIDE`: [h w, 4] of each map [B, D, h, w], row by row."""
    answer = []
    for one in maps:
        height, width = one.shape[2:]
        top, left = torch.meshgrid(
            torch.arange(height, device=one.device) / height,
            torch.arange(width, device=one.device) / width,
            indexing="ij",
        )
        corners = torch.stack([left, top, left + 1 / width, top + 1 / height], 2)
        answer.append(SIDE * corners.flatten(0, 1))
    return answer
