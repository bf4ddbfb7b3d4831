"""RA-CNN: look at the photo, at a square in it, and at a square in that, each chosen by what was seen before.

Fu et al., "Look Closer to See Better: Recurrent Attention Convolutional Neural Network for Fine-grained Image
Recognition", CVPR 2017. As in the paper, proposals first learn to point at the square of half the side where the last
map is most active, and are then ranked: a closer look must be surer of the class. Classifier and proposals learn in
turns. One backbone looks at all scales here, where the paper has one for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import interpolate, smooth_l1_loss

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.base import MOST_ENTRIES, Method
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.crops import crop, whole
from fieldmark.nn.parts import activation, alone, boxcar, evident, inner, narrowed, side_by_side, windows
from fieldmark.nn.pooling import l2_normalise

CARD = Card(
    cls="RACNN",
    family="parts and stages",
    title="Recurrent attention CNN",
    year=2017,
    idea="two proposals zoom in one after the other, trained so that each closer look is surer of the class",
    source="Fu et al., Look Closer to See Better, CVPR 2017",
    equation="max(0, p_s - p_(s+1) + 0.05) for the box of scale s + 1; logits = mean over s of W_s f(X_s) + b",
    needs=("pixels",),
    paper="CUB-200-2011 85.3% (VGG-19, 448 px)",
    when="where one small region tells classes apart, and photos are large enough to zoom in",
)
#: The least side of a square, and the first one, as shares of the side before.
LEAST, FIRST = 1 / 3, 1 / 2
#: How much surer the closer look must be.
MARGIN = 0.05
#: Channels and side of the map that proposals read.
WIDTH, GRID = 64, 7


class Options(base.Options):
    """Settings of RA-CNN."""

    looks: int = Field(3, ge=2, le=4, description="scales: the photo and the zooms")
    hidden: int = Field(1024, ge=1, le=8192, description="width of the proposals' layer")
    scale: float = Field(
        3.0, gt=0, description="length of the features: how far a step of Adam moves the logits"
    )


class Looked(NamedTuple):
    """Scale by scale: features [B, d], the last two kinds of maps, boxes of the photo [B, 4], and proposed squares in
    the scale's own crop [B, 4] (one fewer)."""

    parts: list[Tensor]
    features: list[Features]
    boxes: list[Tensor]
    squares: list[Tensor]


class RACNN(Method):
    """z = [f(X_1), f(X_2), f(X_3)] (`side_by_side`): the answer is the mean of what each scale's own part says."""

    Options = Options
    turns = 2
    phases = (0.3, 0.7)

    def build(self, backbone: Backbone) -> None:
        self.narrow = narrowed(backbone.embedding, MOST_ENTRIES // self.options.looks)
        self.proposals = nn.ModuleList(
            Proposal(backbone.width, self.options.hidden) for _ in range(self.options.looks - 1)
        )
        self.ranks = False

    def begin(self, phase: int) -> None:
        """Proposals imitate in the first phase and are ranked in the second."""
        self.ranks = phase > 0

    def _widths(self, resample: nn.Module) -> list[int]:
        return super()._widths(resample) * self.options.looks

    def parts(self, features: Features) -> list[Tensor]:
        return [l2_normalise(self.narrow(features.embedding))]

    def describe(self, images: Tensor) -> Tensor:
        return side_by_side(self.look(images).parts, self.options.scale)

    def look(self, images: Tensor, still: bool = False) -> Looked:
        """At every scale. still: nothing gets a gradient but the proposals; else the proposals get none."""
        backbone, narrow = (held(self.backbone), held(self.narrow)) if still else (self.backbone, self.narrow)
        looked = Looked([], [], [whole(images[:, 0, 0, :1].float().expand(-1, 4))], [])
        for number in range(self.options.looks):
            if number:
                square = self.proposals[number - 1](looked.features[-1].last.detach())
                looked.squares.append(square)
                looked.boxes.append(inner(looked.boxes[-1].detach(), square if still else square.detach()))
            looked.features.append(backbone(self.closer(images, looked.boxes[-1]) if number else images))
            looked.parts.append(narrow(looked.features[-1].embedding))
        return looked

    @staticmethod
    def closer(images: Tensor, boxes: Tensor) -> Tensor:
        """The photos times the boxes' `boxcar`, zoomed to the boxes: [B, 3, S, S]."""
        side = images.shape[-1]
        return crop(images * boxcar(boxes, side).to(images.dtype), boxes, side)

    def attention(self, images: Tensor) -> Tensor:
        """What at each scale speaks for the answer: [B, h, w]."""
        with torch.enable_grad():
            looked = self.look(images.detach().requires_grad_())
            boxes = [None, *(box[:, None] for box in looked.boxes[1:])]
            looks = [(one.maps[-1], box) for one, box in zip(looked.features, boxes, strict=True)]
            logits = self.head(side_by_side(looked.parts, self.options.scale))
            return evident(logits, looks, images.shape[-1] // 4).detach()

    # -- training

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """First turn: the criterion of each scale alone and of all together. Second turn: the proposals."""
        if batch.turn == 0:
            return self.classify(batch, criterion)
        if self.ranks:
            return self.rank(batch)
        with torch.no_grad():
            looked = self.look(batch.x)
            logits = self.head(side_by_side(looked.parts, self.options.scale))
        maps = [activation(one.last.float()) for one in looked.features[:-1]]
        squares = [proposal(one.last) for proposal, one in zip(self.proposals, looked.features, strict=False)]
        loss = torch.stack([smooth_l1_loss(s, busiest(m)) for s, m in zip(squares, maps, strict=True)]).sum()
        return {"loss": loss, "logits": logits, "imitation": loss.detach()}

    def classify(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """All but the proposals."""
        z = side_by_side(self.look(batch.x).parts, self.options.scale)
        losses, each = self.judge(z, batch.targets, criterion), {}
        for number in range(self.options.looks):
            own = self.head(alone(z, number, self.options.looks))
            each[f"scale_{number + 1}"] = criterion.of_logits(own, batch.targets)
        total = torch.stack([losses["loss"], *each.values()]).sum()
        return {**losses, "loss": total, **{name: value.detach() for name, value in each.items()}}

    def rank(self, batch: Batch) -> dict[str, Tensor]:
        """Nothing but the proposals."""
        looked = self.look(batch.x, still=True)
        z, head = side_by_side(looked.parts, self.options.scale), held(self.head)
        shares = batch.targets
        if shares.ndim == 1:
            shares = nn.functional.one_hot(shares, self.task.classes)
        count = self.options.looks
        sure = [(head(alone(z, n, count)).float().softmax(1) * shares).sum(1) for n in range(count)]
        loss = ranking(sure)
        sides = torch.stack([(box[:, 2] - box[:, 0]).mean() for box in looked.boxes[1:]])
        told = {f"side_{n + 2}": side.detach() for n, side in enumerate(sides)}
        return {"loss": loss, "logits": head(z).detach(), "rank": loss.detach(), **told}


class Proposal(nn.Module):
    """A map [B, C, h, w] -> a square in what it was made of, [B, 4].

    Its side s is in [LEAST, 1], its centre anywhere such that it lies inside: s = LEAST + (1 - LEAST) sigmoid(t_l),
    centre = s / 2 + (1 - s) sigmoid(t_x, t_y). At first s is `FIRST`, in the middle. The paper's layers read the
    flattened map; here it is brought to `WIDTH` channels and `GRID` x `GRID` places first, whatever its size.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, WIDTH, 1)
        self.hidden = nn.Linear(WIDTH * GRID * GRID, hidden)
        self.last = nn.Linear(hidden, 3)
        nn.init.normal_(self.last.weight, std=0.01)
        share = (FIRST - LEAST) / (1 - LEAST)
        with torch.no_grad():
            self.last.bias.copy_(torch.tensor([0.0, 0.0, math.log(share / (1 - share))]))

    def forward(self, x: Tensor) -> Tensor:
        x = interpolate(self.reduce(x), size=(GRID, GRID), mode="bilinear", align_corners=False)
        t = self.last(self.hidden(l2_normalise(x.flatten(1)) * GRID).tanh()).float().sigmoid()
        side = LEAST + (1 - LEAST) * t[:, 2:]
        centre = side / 2 + (1 - side) * t[:, :2]
        return torch.cat([centre - side / 2, centre + side / 2], 1)


def busiest(maps: Tensor) -> Tensor:
    """The square of side `FIRST` in which a map [B, h, w] is most active: [B, 4]."""
    rows, columns = maps.shape[1:]
    boxes, scores = windows(maps, max(1, round(rows * FIRST)), max(1, round(columns * FIRST)))
    best = boxes[scores.argmax(1)]
    corner = ((best[:, :2] + best[:, 2:]) / 2 - FIRST / 2).clamp(0, 1 - FIRST)
    return torch.cat([corner, corner + FIRST], 1)


def ranking(sure: list[Tensor]) -> Tensor:
    """Mean over photos of the sum over scales of max(0, p_s - p_(s+1) + `MARGIN`), p_s without a gradient.

    sure: p_s [B], the probability of the true class at each scale.
    """
    pairs = zip(sure[:-1], sure[1:], strict=True)
    return torch.stack([(one.detach() - two + MARGIN).clamp_min(0).mean() for one, two in pairs]).sum()


def held(module: nn.Module) -> Callable[[Tensor], Any]:
    """The module as a function whose weights get no gradient, while what goes through it does."""
    weights = {name: value.detach() for name, value in module.named_parameters()}
    return lambda x: functional_call(module, weights, (x,))
