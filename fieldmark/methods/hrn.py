"""A score for every node of the class tree, and probabilities of legal states: labels of any rank teach."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.tree import Tree, finest_nll, shares_nll

CARD = Card(
    cls="HRN",
    family="hierarchical",
    title="Hierarchical residual network",
    year=2022,
    idea="each rank adds to the feature of the coarser one; every node of the tree has a score, and only what the tree "
    "allows has a probability",
    source="Chen et al., Label Relation Graphs Enhanced Hierarchical Residual Network, CVPR 2022",
    equation="p(v) = sum over legal states with v of exp(sum of its scores) / Z; loss = -log p(v) + cross-entropy of "
    "classes; r_k = ReLU(sum_(j<=k) b_j)",
    needs=("tree",),
    when="where coarser ranks are known; in a training loop of your own also where some photos are labelled only with "
    "a genus or a family",
)


class Options(base.Options):
    """width: of the features of one rank."""

    width: int = Field(512, ge=1, le=8192, description="width of the features of one rank")


class HRN(base.Method):
    """The descriptor is the finest rank's feature [B, width]: a sum of what all ranks see, and the nodes of each rank
    have scores of what it and the coarser ranks see.

    Scores are log-odds: the probability of a legal state is that of independent sigmoids, given that the state is
    legal. (Where the paper adds up the sigmoids themselves, no probability comes near 1.)
    """

    Options = Options

    def build(self, backbone: Backbone) -> None:
        ranks = [groups for _, groups in self.task.ranks]
        self.tree = Tree(self.task.classes, ranks, "hrn")
        width = self.options.width
        self.blocks = nn.ModuleList(_Block(backbone.width, width) for _ in self.tree.sizes)
        self.nodes = nn.ModuleList(nn.Linear(width, nodes) for nodes in self.tree.sizes)

    def parts(self, features: Features) -> list[Tensor]:
        return [self.ranks(features.last)[-1]]

    def ranks(self, last: Tensor) -> list[Tensor]:
        """The last map [B, C, h, w] -> features [B, width] of every level, coarsest first."""
        seen, answer = self.blocks[0](last), []
        answer.append(seen.relu())
        for block in list(self.blocks)[1:]:
            seen = seen + block(last)
            answer.append(seen.relu())
        return answer

    def log_marginals(self, ranks: list[Tensor]) -> list[Tensor]:
        """Features of every level -> log p(node) [B, n], one a level."""
        return self.tree.log_marginals([layer(rank) for layer, rank in zip(self.nodes, ranks, strict=True)])

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        ranks = self.ranks(self.backbone(batch.x).last)
        losses = self.judge(ranks[-1], batch.targets, criterion)
        return _add(losses, shares_nll(self.log_marginals(ranks)[-1], self.tree.shares(batch.targets)))

    def partly_labelled_step(self, images: Tensor, nodes: Tensor, criterion: Criterion) -> dict[str, Tensor]:
        """As `training_step`, of photos that are labelled at any rank.

        nodes: [B, L], `Tree.ancestors` of a photo's class; -1 from the first level on that is not known. The classes'
        cross-entropy counts only the photos whose class is known.
        """
        ranks, known = self.ranks(self.backbone(images).last), nodes[:, -1] >= 0
        losses = {"loss": 0.0 * self.head(ranks[-1]).sum()}
        if known.any():
            losses = self.judge(ranks[-1][known], nodes[known, -1], criterion)
        losses["logits"] = self.head(ranks[-1])
        return _add(losses, finest_nll(self.log_marginals(ranks), nodes))


class _Block(nn.Module):
    """What one rank sees: [B, C, h, w] -> [B, width]."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.local, self.out = nn.Conv2d(channels, width, 1), nn.Linear(width, width)

    def forward(self, last: Tensor) -> Tensor:
        return self.out(self.local(last).relu().amax((2, 3)))


def _add(losses: dict[str, Tensor], tree: Tensor) -> dict[str, Tensor]:
    return {**losses, "loss": losses["loss"] + tree, "tree": tree.detach()}
