"""The classes and their coarser groups as a tree, and exact probabilities over its nodes.

A node has a number within its level. Everything works level by level on whole batches, without loops over nodes, and
exports to ONNX.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fieldmark.runtime.errors import UsageError

#: In the place of a child that is not there: its exponential is 0.
_NONE = -1e9


class Tree(nn.Module):
    """Classes and their ranks as a tree of L levels, from the coarsest (level 0) to the classes (level L - 1).

    classes: C; ranks: finest first, the number of each class's group at that rank [C] (-1: not known). All classes of
    a node have one parent: the group that most of them name, so one class whose coarser group is not known has that
    of its siblings, and data that contradict themselves still make a tree. Where none names one, a node of its own
    stands in for the group.

    sizes: nodes of each level; groups: of each level but the last, every node's group number at its rank (-1: it
    stands in). ancestors: [C, L] every class's node at each level; known: [C, L] is that a group of the data?

    Raises UsageError, in a line, where there are no ranks: ``method`` is the name of what needs them.
    """

    ancestors: Tensor
    known: Tensor

    def __init__(self, classes: int, ranks: Sequence[Sequence[int]], method: str = "this method"):
        super().__init__()
        if not ranks:
            raise UsageError(
                f"{method} needs a tree of the classes: give a table (CSV) of the photos with a column of a coarser "
                "rank, such as family or order, beside path and label"
            )
        node_of = list(range(classes))
        levels, parents, groups = [node_of], list[list[int]](), list[list[int]]()
        for rank in ranks:
            up, names = _parents(node_of, rank)
            node_of = [up[node] for node in node_of]
            parents.insert(0, up)
            groups.insert(0, names)
            levels.insert(0, node_of)
        parents.insert(0, [0] * len(groups[0]))  # the root's children
        self.sizes, self.groups = [len(up) for up in parents], groups
        known = [
            [names[node] >= 0 for node in level] for names, level in zip(groups, levels[:-1], strict=True)
        ]
        self.register_buffer("ancestors", torch.tensor(levels).T.contiguous(), persistent=False)
        self.register_buffer(
            "known", torch.tensor([*known, [True] * classes]).T.contiguous(), persistent=False
        )
        for level, up in enumerate(parents):
            self.register_buffer(f"_parent{level}", torch.tensor(up), persistent=False)
            self.register_buffer(f"_children{level}", _children(up), persistent=False)

    @property
    def depth(self) -> int:
        """L."""
        return len(self.sizes)

    def parent_of(self, level: int) -> Tensor:
        """[n] the parent of each node of a level, in the level above (0: the root)."""
        return getattr(self, f"_parent{level}")

    def children_of(self, level: int) -> Tensor:
        """[p, m] the children, in ``level``, of each node of the level above; filled up with n, which is no node."""
        return getattr(self, f"_children{level}")

    def node(self, level: int, group: int) -> int:
        """The node of a level that is a group of its rank; -1 for -1 and for groups without a class."""
        return self.groups[level].index(group) if group >= 0 and group in self.groups[level] else -1

    def family_sums(self, level: int, scores: Tensor) -> Tensor:
        """Scores [B, n] of a level's nodes -> log of the summed exponentials of each parent's children [B, p]."""
        scores = _wide(scores)
        none = torch.full_like(scores[:, :1], _NONE)
        return torch.cat([scores, none], 1)[:, self.children_of(level)].logsumexp(2)

    def log_softmax(self, level: int, scores: Tensor) -> Tensor:
        """Scores [B, n] -> log p(node | its parent) [B, n]: a softmax over siblings only."""
        return scores - self.family_sums(level, scores)[:, self.parent_of(level)]

    def along_paths(self, values: Sequence[Tensor]) -> list[Tensor]:
        """One [B, n] a level -> their sums from the root down to each node, one [B, n] a level.

        Of log p(node | parent) that is log p(node), the chain rule.
        """
        sums = [values[0]]
        for level in range(1, self.depth):
            sums.append(values[level] + sums[-1][:, self.parent_of(level)])
        return sums

    def log_marginals(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """Scores of all nodes, one [B, n] a level -> log p(node) [B, n], a level each.

        A legal state is a node, switched on with all its ancestors and nothing else; its probability is proportional
        to the exponential of its nodes' summed scores, that of a node the sum over the legal states in which it is
        on: its own, and those of all nodes below it (Chen et al., CVPR 2022, after Deng et al.,
        "Large-Scale Object Classification using Label Relation Graphs", ECCV 2014).
        """
        sums = self.along_paths([_wide(one) for one in scores])
        for level in range(self.depth - 1, 0, -1):
            sums[level - 1] = torch.logaddexp(sums[level - 1], self.family_sums(level, sums[level]))
        total = sums[0].logsumexp(1, keepdim=True)
        return [one - total for one in sums]

    def shares(self, targets: Tensor) -> Tensor:
        """Class numbers [B], or shares [B, C] -> shares [B, C]."""
        return nn.functional.one_hot(targets, self.sizes[-1]).float() if targets.ndim == 1 else targets

    def rolled_up(self, shares: Tensor, level: int) -> Tensor:
        """Shares of classes [B, C] -> of a level's groups [B, n]; classes whose group is not known are left out."""
        own = shares * self.known[:, level]
        return own.new_zeros(len(own), self.sizes[level]).index_add(1, self.ancestors[:, level], own)


def shares_nll(log_probability: Tensor, shares: Tensor) -> Tensor:
    """Negative log-likelihood of shares [B, n] under log-probabilities [B, n]: its mean over what is known.

    A row whose shares add up to 0 does not count; 0 where none does.
    """
    return -(shares * log_probability).sum() / shares.sum().clamp_min(1e-6)


def finest_nll(log_marginals: Sequence[Tensor], nodes: Tensor) -> Tensor:
    """Negative log-likelihood of labels of any level: the mean over photos of -log p(the finest node known).

    log_marginals: one [B, n] a level; nodes: [B, L] each photo's node at each level, -1 where not known. What is
    above the finest known node is not looked at: it follows. Photos of which nothing is known do not count; 0 where
    there are no others.
    """
    of_level = torch.stack(
        [one.gather(1, nodes[:, [level]].clamp_min(0))[:, 0] for level, one in enumerate(log_marginals)], 1
    )
    known = nodes >= 0
    finest = known & (known.flip(1).cumsum(1).flip(1) == 1)  # the last of a row
    return -(of_level * finest).sum() / finest.sum().clamp_min(1)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _parents(node_of: Sequence[int], rank: Sequence[int]) -> tuple[list[int], list[int]]:
    """The parent of each node [n], and the group of each parent [p] (-1: it stands in for one).

    node_of: the node of each class [C]; rank: its group at the rank above [C].
    """
    votes: dict[int, Counter[int]] = {node: Counter() for node in range(max(node_of) + 1)}
    for node, group in zip(node_of, rank, strict=True):
        if group >= 0:
            votes[node][group] += 1
    named = [min(vote, key=lambda group: (-vote[group], group)) if vote else -1 for vote in votes.values()]
    groups = sorted({group for group in named if group >= 0})
    number, answer = {group: i for i, group in enumerate(groups)}, []
    for group in named:
        answer.append(number[group] if group >= 0 else len(groups))
        if group < 0:
            groups.append(-1)
    return answer, groups


def _children(parents: Sequence[int]) -> Tensor:
    """[p, m] padded with n."""
    families: list[list[int]] = [[] for _ in range(max(parents) + 1)]
    for node, parent in enumerate(parents):
        families[parent].append(node)
    most = max(map(len, families))
    return torch.tensor([family + [len(parents)] * (most - len(family)) for family in families])
