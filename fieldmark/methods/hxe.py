"""Hierarchical cross-entropy and soft labels: a mistake within the genus costs less than one across families."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from torch import Tensor

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.plain import Plain
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone
from fieldmark.nn.tree import Tree, shares_nll

CARD = Card(
    cls="HXE",
    family="hierarchical",
    title="Hierarchical cross-entropy",
    year=2020,
    idea="a mistake costs less the nearer its class lies to the true one in the class tree",
    source="Bertinetto et al., Making Better Mistakes, CVPR 2020",
    equation="loss = -sum_l lambda_l log p(C_l | C_(l+1)), C_(l+1) the parent of C_l, lambda = exp(-alpha distance "
    "from the root)",
    needs=("tree",),
    uses=("ranks",),
    when="where a mistake within the genus is better than one across families: it trades a little accuracy for that",
)


def weights(levels: int, alpha: float) -> list[float]:
    """lambda of each level's edge to its parent, coarsest first: exp(-alpha distance from the root), mean 1."""
    raw = [math.exp(-alpha * (level + 1)) for level in range(levels)]
    return [levels * one / sum(raw) for one in raw]


def log_nodes(tree: Tree, log_p: Tensor) -> list[Tensor]:
    """log p of the classes [B, C] -> of the nodes of each level [B, n], coarsest first: sums over their classes."""
    answer = [log_p]
    for level in range(tree.depth - 1, 0, -1):
        answer.insert(0, tree.family_sums(level, answer[0]))
    return answer


def soft_labels(tree: Tree, labels: Tensor, beta: float) -> Tensor:
    """Labels of any rank [B], as `Tree` numbers them -> shares [B, C] in proportion to exp(-beta d(class, label)), the
    paper's soft labels.

    d: height of the lowest node that has both, as a share of the tree's: 0 for the class itself, 1 where only the
    root has both.
    """
    shared = (tree.paths[labels][:, None] == tree.ancestors).sum(2)  # [B, C] levels, from the root down
    return (-beta * (1 - shared / tree.depth)).softmax(1)


class HXE(Plain):
    """As `plain`: the tree is in the loss only.

    The paper's sum of conditional log-probabilities is, by Abel's summation, a sum of cross-entropies of all levels,
    lambda_0 CE(class) + sum_l (lambda_l - lambda_(l-1)) CE(C_l). So the loss that was asked for judges the classes,
    with its smoothing and weights, and the groups above have the plain one. A photo that is labelled with a coarser
    group has the same sum from there on. The mean lambda is 1, alpha = 0 is
    cross-entropy. With ``soft_labels`` the loss that was asked for is taken of soft targets. (The paper tries alpha
    from 0.1 to 0.9 and beta from 4 to 30: more alpha and less beta make nearer mistakes, but more of them.)
    """

    class Options(base.Options):
        form: Literal["hxe", "soft_labels"] = Field("hxe", description="hxe, or soft_labels")
        alpha: float = Field(0.1, ge=0, le=5, description="for hxe: the larger, the more coarse ranks count")
        beta: float = Field(
            10.0, gt=0, le=100, description="for soft_labels: the smaller, the more near classes share"
        )

    def build(self, backbone: Backbone) -> None:
        self.tree = Tree(self.task.classes, [groups for _, groups in self.task.ranks], "hxe")

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        z = self.describe(batch.x)
        if self.options.form == "soft_labels":
            return self.by_soft_labels(z, batch, criterion)
        losses = self.judge_known(z, batch, criterion)
        coarse = self.coarse(criterion.adjusted(losses["logits"]), batch.targets)
        finest = weights(self.tree.depth, self.options.alpha)[-1]
        losses["loss"] = finest * losses["loss"] + coarse
        return {**losses, "coarse": coarse.detach()}

    def coarse(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What the groups above the classes add: logits [B, C] and targets of any rank -> a scalar."""
        shares, lambdas = self.tree.node_shares(targets), weights(self.tree.depth, self.options.alpha)
        total = logits.new_zeros(())
        for level, log_p in enumerate(log_nodes(self.tree, logits.log_softmax(1))[:-1]):
            rise = lambdas[level] - lambdas[level + 1]
            total = total + rise * shares_nll(log_p, self.tree.above(shares, level))
            total = total + lambdas[level + 1] * shares_nll(log_p, self.tree.own_shares(shares, level))
        return total

    def by_soft_labels(self, z: Tensor, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """The losses with targets that near classes share; losses of the embedding see the classes as they are."""
        shares, logits = self.tree.node_shares(batch.targets), self.head(z)
        there = shares.any(0).nonzero()[:, 0]
        soft = shares[:, there] @ soft_labels(self.tree, there, self.options.beta)
        loss = criterion.of_logits(logits, soft)
        value = loss.detach()
        if criterion.needs_embedding:
            known, own = batch.known(logits.shape[1])
            loss = loss + criterion.of_embedding(self.projection(z)[known], own) * known.float().mean()
        return {"loss": loss, "logits": logits, "soft_labels": value}
