"""The classes and their coarser groups as a tree, and exact probabilities over its nodes.

A node has a number within its level. Everything works level by level on whole batches, without loops over nodes, and
exports to ONNX.

What a photo is labelled with has one number among all K nodes: a class 0 to C - 1, from C on a node of the level above
the classes, and so on up. Shares [B, K] have their columns in the same order.
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
    stands in). paths: [K, L] the node at each level of every label, -1 below it; known: [K, L] is that a group of the
    data? ancestors: [C, L] the paths of the classes.

    Raises UsageError, in a line, where there are no ranks: ``method`` is the name of what needs them.
    """

    paths: Tensor
    known: Tensor

    def __init__(self, classes: int, ranks: Sequence[Sequence[int]], method: str = "this method"):
        super().__init__()
        if not ranks:
            raise UsageError(
                f"{method} needs a tree of the classes: give a table (CSV) of the photos with a column of a coarser "
                "rank, such as family or order, beside path and label"
            )
        node_of = list(range(classes))
        parents, groups = list[list[int]](), list[list[int]]()
        for rank in ranks:
            up, names = _parents(node_of, rank)
            node_of = [up[node] for node in node_of]
            parents.insert(0, up)
            groups.insert(0, names)
        parents.insert(0, [0] * len(groups[0]))  # the root's children
        self.sizes, self.groups = [len(up) for up in parents], groups
        paths = _paths(parents)
        # -1, which is no node, takes the last place.
        real = [torch.tensor([group >= 0 for group in [*names, -1]]) for names in [*groups, range(classes)]]
        self.register_buffer("paths", paths, persistent=False)
        known = torch.stack([own[paths[:, level]] for level, own in enumerate(real)], 1)
        self.register_buffer("known", known, persistent=False)
        for level, up in enumerate(parents):
            self.register_buffer(f"_parent{level}", torch.tensor(up), persistent=False)
            self.register_buffer(f"_children{level}", _children(up), persistent=False)

    @property
    def depth(self) -> int:
        """L."""
        return len(self.sizes)

    @property
    def ancestors(self) -> Tensor:
        """[C, L] every class's node at each level."""
        return self.paths[: self.sizes[-1]]

    def parent_of(self, level: int) -> Tensor:
        """[n] the parent of each node of a level, in the level above (0: the root)."""
        return getattr(self, f"_parent{level}")

    def children_of(self, level: int) -> Tensor:
        """[p, m] the children, in ``level``, of each node of the level above; filled up with n, which is no node."""
        return getattr(self, f"_children{level}")

    def labels(self, groups: Sequence[Sequence[int]]) -> list[int]:
        """What photos are labelled with of which groups are known: the number of the finest node, -1 where none is.

        groups: finest rank first, each photo's group at that rank (-1: not known).
        """
        answer, first = [-1] * len(groups[0]), len(self.paths)
        for level, own in enumerate(reversed(groups)):  # what is finer replaces what is coarser
            first -= self.sizes[level]
            number = {group: first + node for node, group in enumerate(self.groups[level]) if group >= 0}
            answer = [number.get(group, before) for before, group in zip(answer, own, strict=True)]
        return answer

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
        "Large-Scale Object Classification using Label Relation Graphs", ECCV 2014). That nothing is switched on is
        legal, too, and has what is left.
        """
        sums = self.along_paths([_wide(one) for one in scores])
        for level in range(self.depth - 1, 0, -1):
            sums[level - 1] = torch.logaddexp(sums[level - 1], self.family_sums(level, sums[level]))
        nothing = torch.zeros_like(sums[0][:, :1])
        total = torch.cat([sums[0], nothing], 1).logsumexp(1, keepdim=True)
        return [one - total for one in sums]

    def node_shares(self, targets: Tensor) -> Tensor:
        """Numbers of labels of any level [B], or shares of the first of them [B, <= K] -> shares [B, K]."""
        if targets.ndim == 1:
            return nn.functional.one_hot(targets, len(self.paths)).float()
        return nn.functional.pad(targets, (0, len(self.paths) - targets.shape[1]))

    def own_shares(self, shares: Tensor, level: int) -> Tensor:
        """Shares of labels of any level [B, K] -> of those that are a level's own nodes [B, n]."""
        return shares.split(self.sizes[::-1], 1)[self.depth - 1 - level]

    def rolled_up(self, shares: Tensor, level: int) -> Tensor:
        """Shares of labels of any level [B, K] -> of a level's groups [B, n]; labels whose group there is not known are
        left out."""
        return self.above(shares * self.known[:, level], level)

    def above(self, shares: Tensor, level: int) -> Tensor:
        """Shares of labels of any level [B, K] -> of the nodes of a level that they lie in or are [B, n], groups of the
        data or not."""
        nodes = self.paths[:, level]
        own = shares * (nodes >= 0)
        return own.new_zeros(len(own), self.sizes[level]).index_add(1, nodes.clamp_min(0), own)


def shares_nll(log_probability: Tensor, shares: Tensor) -> Tensor:
    """Negative log-likelihood of shares [B, n] under log-probabilities [B, n]: its mean over the photos.

    A photo whose shares add up to less than 1 counts for less, so that the parts of a batch add up to the whole.
    """
    return -(shares * log_probability).sum() / len(shares)


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


def _paths(parents: Sequence[Sequence[int]]) -> Tensor:
    """Every node's parent, level by level -> [K, L] the nodes on every label's way down, then -1."""
    ways = [torch.empty(1, 0, dtype=torch.long)]
    for up in parents:  # each node's way is its parent's, and itself
        ways.append(torch.cat([ways[-1][torch.tensor(up)], torch.arange(len(up))[:, None]], 1))
    room = len(parents)
    return torch.cat([nn.functional.pad(way, (0, room - way.shape[1]), value=-1) for way in ways[:0:-1]])
