"""PMG: learns small patches first, then larger ones, then the whole: each stage of the backbone its own size of mark.

Du et al., "Fine-Grained Visual Classification via Progressive Multi-Granularity Training of Jigsaw Patches", ECCV
2020. The paper trains with SGD (rate 2e-3, a tenth of it for the backbone, cosine) for 200 epochs, 16 photos a batch,
resized to 550 and cropped to 448 px.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.base import Method
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.jigsaw import any_order, shuffled
from fieldmark.runtime.errors import FieldmarkError

CARD = Card(
    cls="PMG",
    family="progressive and destructive",
    title="Progressive multi-granularity training",
    year=2020,
    idea="the last three stages learn in turn from jigsaws of ever larger pieces, then all together from whole photos",
    source="Du et al., Progressive Multi-Granularity Training of Jigsaw Patches, ECCV 2020",
    equation="logits = mean of W_i h_i + b, h_i of stage i's largest values, the fourth of all three stages' together",
    needs=("pixels",),
    paper="CUB-200-2011 89.6% (ResNet-50, 448 px, the four heads together)",
    when="where marks are textures as well as parts, and training may take four times as long",
)
#: Pieces a side that a photo is cut into, turn by turn; one is the photo itself.
PIECES = (8, 4, 2, 1)
#: How much the loss of the last turn weighs.
LAST = 2.0


class Options(base.Options):
    """Settings of PMG."""

    width: int = Field(
        512, ge=1, le=4096, description="width of each head's layer, and of a stage's that has more channels"
    )


class PMG(Method):
    """z = [h_1, h_2, h_3, h_4] / 4, each h_i [B, width] of one head: the answer is the mean of their logits.

    Those of one head are W_i h_i + b. h_1 to h_3 are of the third last to the last stage, h_4 of all three.
    Raises FieldmarkError for a backbone of fewer than three stages.
    """

    Options = Options
    turns = len(PIECES)

    def build(self, backbone: Backbone) -> None:
        if len(backbone.channels) < 3:
            raise FieldmarkError(
                f"backbone {backbone.source.architecture} has {len(backbone.channels)} stages and pmg needs three: "
                "take one such as resnet50 or tf_efficientnet_lite0"
            )
        channels, width = [*backbone.channels[-3:-1], backbone.width], self.options.width
        self.stages = nn.ModuleList(stage(many, min(width, many)) for many in channels)
        widths = [2 * min(width, many) for many in channels]
        self.heads = nn.ModuleList(layer(many, width) for many in [*widths, sum(widths)])

    def parts(self, features: Features) -> list[Tensor]:
        pooled = [self.pooled(number, features) for number in range(3)]
        return [self.read(turn, pooled) / self.turns for turn in range(self.turns)]

    def pooled(self, number: int, features: Features) -> Tensor:
        """The largest values of a stage's map, after its convolutions: [B, d]."""
        return self.stages[number]((*features.maps[-3:-1], features.last)[number]).amax((2, 3))

    def read(self, turn: int, pooled: list[Tensor]) -> Tensor:
        """h of a turn: of one stage's values, or in the last of all: [B, width]."""
        return self.heads[turn](pooled[turn] if turn < 3 else torch.cat(pooled, 1))

    # -- training

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """The turn's head alone, on photos cut into the turn's pieces; the whole photos' loss weighs `LAST`."""
        images, turn, pieces = batch.x, batch.turn, PIECES[batch.turn]
        if pieces > 1:
            images = shuffled(images, any_order(len(images), pieces, images.device))
        features = [self.backbone(resample(images)) for resample in self.resamplers]
        losses = self.judge(
            torch.cat([self.alone(turn, one) for one in features], 1), batch.targets, criterion
        )
        return {**losses, "loss": (LAST if pieces == 1 else 1.0) * losses["loss"]}

    def alone(self, turn: int, features: Features) -> Tensor:
        """[B, 4 width]: one head's h at its place, zeros elsewhere."""
        last = turn == self.turns - 1
        pooled = [self.pooled(i, features) if last or i == turn else features.embedding for i in range(3)]
        if last and self.training:
            with torch.no_grad():  # so that their batch norms know whole photos as well
                for number in range(3):
                    self.read(number, pooled)
        width = self.options.width
        return nn.functional.pad(self.read(turn, pooled), (turn * width, (self.turns - 1 - turn) * width))


def stage(channels: int, width: int) -> nn.Sequential:
    """A map [B, C, h, w] -> [B, 2 width, h, w]: 1x1 and 3x3 convolutions, each with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
    )


def layer(entries: int, width: int) -> nn.Sequential:
    """[B, d] -> [B, width]."""
    return nn.Sequential(Norm(entries), nn.Linear(entries, width), Norm(width), nn.ELU())


class Norm(nn.BatchNorm1d):
    """Batch norm; a photo alone, which has no variance, is normalised by what was seen before."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 1:
            return super().forward(x)
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )
