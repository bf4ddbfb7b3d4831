"""One slice of the feature for each rank; coarse heads read the finer slices too, but may not change them."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.tree import Tree, shares_nll

CARD = Card(
    cls="FGN",
    family="hierarchical",
    title="Features split by rank",
    year=2021,
    idea="every rank has a slice of the feature; coarser ranks also read the finer slices, but cannot change them",
    source="Chang et al., Your 'Flamingo' is My 'Bird': Fine-Grained, or Not, CVPR 2021",
    equation="logits_k = W_k [f_k; stop(f_(k+1)); …; stop(f_L)]; loss = sum_k cross-entropy_k",
    needs=("tree",),
    uses=("ranks",),
    when="where coarser ranks are known: they help to learn the classes at nearly no cost",
)


class Options(base.Options):
    """width: of all slices together."""

    width: int = Field(512, ge=2, le=8192, description="width of the feature that is split among the ranks")


class FGN(base.Method):
    """The descriptor is the finest slice [B, width / L]; coarser ranks have heads of their own.

    Photos whose group at a rank is not known do not count at that rank, so those that are labelled with a coarser group
    teach from that rank up. Slices are normalised by layers,
    where the paper has batch norms, so that batches may be of any size.
    """

    Options = Options

    def build(self, backbone: Backbone) -> None:
        ranks = [groups for _, groups in self.task.ranks]
        self.tree = Tree(self.task.classes, ranks, "fgn")
        levels, own = self.tree.depth, max(2, self.options.width // self.tree.depth)
        self.names = [name for name, _ in self.task.ranks][::-1]  # coarsest first
        self.split = nn.ModuleList(
            nn.Sequential(nn.Linear(backbone.embedding, own), nn.LayerNorm(own), nn.ELU())
            for _ in range(levels)
        )
        self.heads = nn.ModuleList(
            nn.Linear(own * (levels - level), nodes) for level, nodes in enumerate(self.tree.sizes[:-1])
        )

    def parts(self, features: Features) -> list[Tensor]:
        return [self.split[-1](features.embedding)]

    def slices(self, embedding: Tensor) -> list[Tensor]:
        """[B, F] -> one [B, width / L] a level, coarsest first."""
        return [layer(embedding) for layer in self.split]

    def rank_logits(self, slices: list[Tensor]) -> list[Tensor]:
        """Logits [B, n] of every level but the last, coarsest first."""
        fixed = [one.detach() for one in slices]
        return [
            head(torch.cat([slices[level], *fixed[level + 1 :]], 1)) for level, head in enumerate(self.heads)
        ]

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        slices = self.slices(self.backbone(batch.x).embedding)
        losses = self.judge_known(slices[-1], batch, criterion)
        shares = self.tree.node_shares(batch.targets)
        for level, (name, logits) in enumerate(zip(self.names, self.rank_logits(slices), strict=True)):
            nll = shares_nll(logits.float().log_softmax(1), self.tree.rolled_up(shares, level))
            losses["loss"] = losses["loss"] + nll
            losses[f"loss_of_{name}"] = nll.detach()
        return losses
