"""This looks like that: a photo is told by how near its patches come to patches of the classes' own photos."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.base import MOST_ENTRIES, Method
from fieldmark.methods.learner import Photos
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.prototypes import Cheapest, Patches, Prototypes, cluster_and_separation, similarity
from fieldmark.runtime.errors import FieldmarkError

CARD = Card(
    cls="ProtoPNet",
    family="interpretable",
    title="ProtoPNet",
    year=2019,
    idea="every class has some prototypes, each a patch of a training photo; its logit sums the similarities to them",
    source="Chen et al., This Looks Like That, NeurIPS 2019",
    equation="z_j = max over patches of log((d_j + 1) / (d_j + e)); CE + 0.8 cluster - 0.08 separation + 1e-4 |W|_1",
    needs=("labels",),
    paper="CUB-200-2011 80.1% (DenseNet-161, 224 px, photos cropped to the birds)",
    when="where people must see what an answer rests on: patches of known photos that look alike",
)
#: Weight at first of a prototype of the class, and of another one's.
OWN, OTHER = 1.0, -0.5


class ProtoPNet(Method):
    """One part: the similarity of the nearest patch to each prototype [B, P].

    Phases: all but the last layer learns, with the last layer as it is; then each prototype becomes the nearest patch
    of its class's photos (`Prototypes.place` says which), and the last layer alone learns. The paper pushes every ten
    epochs, with SGD steps of the last layer between. Prototypes begin as patches drawn from their class's photos (in
    the paper as random numbers): few epochs do not move them far. The last layer has a bias, as all heads here.
    """

    phases = (0.75, 0.25)
    fitted = False

    class Options(base.Options):
        each: int = Field(10, ge=1, le=100, description="prototypes of a class")
        width: int = Field(128, ge=2, le=1024, description="channels of a prototype")
        cluster: float = Field(
            0.8, ge=0, description="weight of the distance to one's own class's prototypes"
        )
        separation: float = Field(0.08, ge=0, description="weight of the distance to those of others")
        sparsity: float = Field(
            1e-4, ge=0, description="weight of |W| between a class and others' prototypes"
        )

    def build(self, backbone: Backbone) -> None:
        classes, width = self.task.classes, self.options.width
        each = min(self.options.each, MOST_ENTRIES // classes)
        if not each:
            raise FieldmarkError(
                f"protopnet has at most {MOST_ENTRIES} prototypes, too few for {classes} classes: take pipnet"
            )
        self.reduce = nn.Sequential(
            nn.Conv2d(backbone.width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.Sigmoid()
        )
        self.prototypes = Prototypes(classes, each, width)
        self._still: list[nn.Parameter] = []

    def add_head(self, classes: int, embedding: int, rank: int | None = None) -> None:
        """The last layer begins as the paper has it. rank: is not heeded, for each weight has a meaning."""
        super().add_head(classes, embedding)
        assert isinstance(self.head, nn.Linear)
        with torch.no_grad():
            self.head.weight.copy_(torch.where(self._own(), OWN, OTHER))
            self.head.bias.zero_()

    def _own(self) -> Tensor:
        """[C, P]: is it a prototype of this class? A class that came later has none."""
        classes = torch.arange(len(self.head.weight), device=self.prototypes.owner.device)  # type: ignore[arg-type]
        return classes[:, None] == self.prototypes.owner

    def distances(self, features: Features) -> Tensor:
        """[B, P, h, w]."""
        return self.prototypes(self.reduce(features.last))

    def parts(self, features: Features) -> list[Tensor]:
        return [similarity(self.distances(features).amin((2, 3)))]

    def begin(self, phase: int) -> None:
        for parameter in self._still:
            parameter.requires_grad_()
        last = list(self.head.parameters())
        rest = [*self.backbone.parameters(), *self.reduce.parameters(), *self.prototypes.parameters()]
        self._still = [p for p in (rest if phase else last) if p.requires_grad]
        for parameter in self._still:
            parameter.requires_grad_(False)

    @torch.no_grad()
    def prepare(self, phase: int, photos: Photos) -> None:
        """Put every prototype on a patch of its class: on any, before anything was learned, then on the nearest."""
        if phase == 0 and (self.prototypes.place >= 0).any():
            return
        self.eval()
        found, chance = Cheapest(self.prototypes), torch.Generator().manual_seed(0)  # alike in all processes
        for x, labels in photos():
            patches = self.reduce(self.backbone(x).last)
            cost = self.prototypes(patches)
            if phase == 0:
                cost = torch.rand(cost.shape, generator=chance).to(cost.device)
            found.see(patches, labels, cost)
        self.prototypes.push(found, stay=phase > 0)

    def patches(self, photos: Photos) -> Patches | None:
        """Those that the prototypes were put on; none before the last layer learns, for they move until then."""
        own = self.prototypes
        put = (own.place[:, 0] >= 0) & (own.settled > 0.5)
        if not put.any():
            return None
        height, width = self.backbone.grid
        number, place = put.nonzero()[:, 0], own.place[put]
        return Patches(number, place[:, 0].long(), place[:, 1:], (1 / height, 1 / width))

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        nearest = self.distances(self.backbone(batch.x)).amin((2, 3))
        losses = self.judge(similarity(nearest), batch.targets, criterion)
        cluster, separation = cluster_and_separation(nearest, self.prototypes.owner, batch.labels)
        sparsity = self.head.weight.abs()[~self._own()].sum()  # type: ignore[operator, union-attr]
        o = self.options
        total = losses["loss"] + o.cluster * cluster - o.separation * separation + o.sparsity * sparsity
        named = {"cluster": cluster, "separation": separation, "sparsity": sparsity}
        return {**losses, "loss": total, **{name: value.detach() for name, value in named.items()}}

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """Similarity to the prototypes that speak for the answer, weighted as there."""
        near = similarity(self.distances(self.backbone(images)))
        answer = self.head(near.amax((2, 3))).argmax(1)
        speaks: Tensor = self.head.weight[answer].clamp_min(0)  # type: ignore[index, operator]
        return (speaks[:, :, None, None] * near).sum(1)
