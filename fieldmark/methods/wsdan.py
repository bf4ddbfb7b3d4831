"""WS-DAN: attention maps say which part of the photo to look at closer, and which to do without.

Hu, Qi, "See Better Before Looking Closer: Weakly Supervised Data Augmentation Network for Fine-Grained Visual
Classification", 2019. The paper trains with SGD (rate 1e-3, times 0.9 every 2 epochs, weight decay 1e-5) for 160
epochs of 448 px photos, 12 a batch.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fieldmark.losses.center import moved
from fieldmark.losses.combine import Criterion
from fieldmark.losses.targets import pure
from fieldmark.methods import Card, base
from fieldmark.methods.base import MOST_ENTRIES, Method
from fieldmark.methods.task import Batch
from fieldmark.nn.attention_pooling import AttentionMaps, drawn, part_features
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.crops import boxes_above, crop, drop, enlarged, of_peak
from fieldmark.nn.pooling import FixedReduction, l2_normalise

CARD = Card(
    cls="WSDAN",
    family="attention-guided augmentation",
    title="Weakly supervised data augmentation network",
    year=2019,
    idea="learned attention maps stand for parts: each pools a feature, and in training one says where to zoom in and "
    "another what to hide",
    source="Hu, Qi, See Better Before Looking Closer, 2019",
    equation="logits = W f / |f| + b, f = signed root of [mean of A_m X] for each map A_m = relu(bn(conv(X)))",
    needs=("pixels",),
    paper="CUB-200-2011 89.4% (Inception v3, 448 px, photo and crop); reruns by others 88.3% to 89.3%",
    when="where marks lie on parts of an object that fills little of the photo, and no boxes are known",
)
#: A crop holds what is above a share of a map's largest value that is drawn from the first range; what is above one
#: from the second is hidden. Crops are wider than that by a share of the photo's side.
CROP, DROP, PAD = (0.4, 0.6), (0.2, 0.5), 0.1
#: The same of the mean map, for the second look at a photo in answering.
SECOND_LOOK, SECOND_PAD = 0.1, 0.05
#: Of `losses.center.moved`: for the one photo of its class in a batch it moves a centre by half of this, as in the
#: paper's code (0.05).
CENTER_RATE = 0.1


class Options(base.Options):
    """Settings of WS-DAN."""

    maps: int = Field(32, ge=1, le=1024, description="attention maps, each for a part of the thing")
    scale: float = Field(1.0, gt=0, description="length of the descriptor (the paper, with SGD: 100)")
    center: float = Field(1.0, ge=0, description="weight of the loss that keeps a class's parts together")


class WSDAN(Method):
    """z = scale f, f [B, M C'] the unit-length `part_features` of the last map under M attention maps.

    Where M C would be more than `MOST_ENTRIES`, a learned 1x1 reduction, orthonormal at first, leaves C' channels.
    The paper's length of 100 makes the small steps of SGD larger. Those of Adam do not depend on the gradient's size:
    with this length each moves the logits a hundred times as far, and the head does not settle. The head has a bias, as
    all heads here, and the second look of the paper's answers is taken with ``tta`` only: it doubles their time.
    """

    Options = Options
    centers: Tensor

    @property
    def selects(self) -> bool:  # type: ignore[override]
        """Where the second look goes is told by a threshold."""
        return self.tta

    def build(self, backbone: Backbone) -> None:
        self.reduction = FixedReduction(backbone.width, MOST_ENTRIES // self.options.maps)
        self.maps = AttentionMaps(backbone.width, self.options.maps)
        width = self.options.maps * self.reduction.out_channels * len(self.scales)
        self.register_buffer("centers", torch.zeros(self.task.classes, width))
        self._moves: list[tuple[Tensor, Tensor]] = []

    def parts(self, features: Features) -> list[Tensor]:
        return [self.pooled(features.last, self.maps(features.last))]

    def pooled(self, x: Tensor, maps: Tensor) -> Tensor:
        """[B, C, h, w] under [B, M, h, w] -> [B, M C']."""
        return self.options.scale * part_features(self.reduction(x), maps)

    def seen(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Features and their attention maps at each scale, the largest first."""
        features = [self.backbone(resample(images)).last for resample in self.resamplers]
        return [(x, self.maps(x)) for x in features]

    def describe(self, images: Tensor) -> Tensor:
        """With ``tta`` the mean of the photo's descriptor and that of its part above `SECOND_LOOK` of the mean map."""
        seen = self.seen(images)
        z = self._together(seen)
        if not self.tta:
            return z
        mean, side = seen[0][1].mean(1), images.shape[-1]
        boxes = boxes_above(enlarged(mean, side), of_peak(mean, SECOND_LOOK), SECOND_PAD)
        return (z + self._together(self.seen(crop(images, boxes, side)))) / 2

    def _together(self, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
        return torch.cat([self.pooled(x, maps) for x, maps in seen], 1)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """As every method, and the maps ``attention`` [B, M, h, w]."""
        return {**super().features(images), "attention": self.seen(images)[0][1]}

    def attention(self, images: Tensor) -> Tensor:
        """The mean map [B, h, w]."""
        with torch.no_grad():
            return self.seen(images)[0][1].mean(1)

    # -- training

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """Criterion of the photos, their crops and what is left when a part is hidden, and the centre loss."""
        z, _ = self.looks(batch.x)
        losses = self.judge(z, torch.cat([batch.targets] * 3), criterion)
        return self.with_center(losses, z, batch)

    def looks(self, images: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Descriptors [3 B, d] of photos, crops and photos with a part hidden; what was `seen` of each scale."""
        first = self.seen(images)
        second = self.seen(self.guided(images, first[0][1].detach()))
        seen = [(torch.cat([x, y]), torch.cat([a, b])) for (x, a), (y, b) in zip(first, second, strict=True)]
        return self._together(seen), seen

    def guided(self, images: Tensor, maps: Tensor) -> Tensor:
        """Crops at a map drawn for each photo, then the photos without what another one marks: [2 B, 3, S, S]."""
        side, (marks, hidden) = images.shape[-1], drawn(maps, 2).unbind(1)
        boxes = boxes_above(enlarged(marks, side), of_peak(marks, between(CROP, marks)), PAD)
        closer = crop(images, boxes, side)
        return torch.cat([closer, drop(images, hidden, of_peak(hidden, between(DROP, hidden)))])

    def with_center(self, losses: dict[str, Tensor], z: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Adds |f - c_y / |c_y||^2, the mean over photos, to the loss; keeps the photos' own logits.

        z: [3 B, d], the photos' descriptors first.
        """
        labels, rows = pure(batch.targets)
        f = z[: len(labels)].float() / self.options.scale
        if rows is not None:
            f, labels = f[rows], labels[rows]
        away = (f - l2_normalise(self.centers[labels])).square().sum()
        center = away / max(1, len(labels))
        if self.training:
            self._moves.append((f.detach(), labels))
        return {
            **losses,
            "loss": losses["loss"] + self.options.center * center,
            "logits": losses["logits"][: len(batch.targets)],
            "centers": center.detach(),
        }

    def begin(self, phase: int) -> None:
        """What was seen before, where speed was measured, moves no centre."""
        self.dropped()

    def dropped(self) -> None:
        self._moves = []

    @torch.no_grad()
    def stepped(self) -> None:
        """Centres follow the photos of the step: c <- c + rate n / (1 + n) (mean f - c / |c|), n photos of a class."""
        if not self._moves:
            return
        f, labels = (torch.cat(of) for of in zip(*self._moves, strict=True))
        self._moves = []
        at = l2_normalise(self.centers)
        self.centers += moved(at, f, labels, CENTER_RATE) - at


def between(ends: tuple[float, float], maps: Tensor) -> Tensor:
    """A number for each photo, even between the two: [B]."""
    low, high = ends
    return low + (high - low) * torch.rand(len(maps), device=maps.device)
