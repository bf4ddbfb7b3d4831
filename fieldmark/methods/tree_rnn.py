"""A decoder that walks down the class tree: first the order, then the family, then the species."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.tree import Tree, shares_nll

CARD = Card(
    cls="TreeRNN",
    family="recurrent",
    title="Tree-structured recurrent decoder",
    year=2018,
    idea="an LSTM walks from the root of the class tree to a leaf, choosing among the children of each node",
    source="Guo et al., CNN-RNN: a large-scale hierarchical image classification framework, MTAP 2018",
    equation="log p(c) = sum_k log softmax_(children of v_(k-1)) (w_v . (U h_k + V f)), v_k the ancestors of c",
    needs=("tree",),
    uses=("ranks",),
    when="where coarser ranks must be right too: the probability of a group is exactly the sum of its classes'",
)

State = tuple[Tensor, Tensor]


class Options(base.Options):
    """hidden: the LSTM's state; word: what a node is as its input."""

    hidden: int = Field(256, ge=1, le=4096, description="width of the LSTM's state")
    word: int = Field(64, ge=1, le=4096, description="width of a node's embedding, the LSTM's input")


class TreeRNN(base.Method):
    """The descriptor is log p(class) [B, C] itself; the head is the identity.

    The state at a node depends on the photo and on the way there only, so all nodes of a level are decoded at once,
    and the probability of every class is exact. Its cross-entropy is the sum of the levels' cross-entropies on the
    true way (teacher forcing): -log p(c) = -sum_k log p(v_k | v_(k-1)). A photo that is labelled with a coarser group
    teaches the way down to it.
    """

    Options = Options
    fitted = False

    def build(self, backbone: Backbone) -> None:
        ranks = [groups for _, groups in self.task.ranks]
        self.tree = Tree(self.task.classes, ranks, "tree_rnn")
        hidden, inner = self.options.hidden, self.tree.sizes[:-1]
        self.start = nn.Linear(backbone.embedding, hidden)
        self.photo = nn.Linear(backbone.embedding, hidden)
        self.words = nn.ParameterList(torch.randn(nodes, self.options.word) for nodes in (1, *inner))
        self.cell = nn.LSTMCell(self.options.word, hidden)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.nodes = nn.ModuleList(nn.Linear(hidden, nodes) for nodes in self.tree.sizes)

    def add_head(self, classes: int, embedding: int, rank: int | None = None) -> None:
        """The identity, and the projection. Classes that came later than the tree have rows of an ordinary head."""
        width = self.tree.sizes[-1]
        self.head = Unchanged(width) if classes == width else nn.Linear(width, classes)
        self.projection = nn.Linear(width, embedding)

    def parts(self, features: Features) -> list[Tensor]:
        return [self.tree.along_paths([*self.levels(features.embedding)])[-1]]

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        log_p = self.tree.along_paths([*self.levels(self.backbone(batch.x).embedding)])
        losses = self.judge_known(log_p[-1], batch, criterion)
        if not batch.coarse:
            return losses
        shares = self.tree.node_shares(batch.targets)
        each = [shares_nll(p, self.tree.own_shares(shares, level)) for level, p in enumerate(log_p[:-1])]
        coarse = torch.stack(each).sum()
        return {**losses, "loss": losses["loss"] + coarse, "coarse": coarse.detach()}

    def levels(self, embedding: Tensor) -> Iterator[Tensor]:
        """Photos [B, F] -> log p(node | its parent) [B, n] for every node, level by level."""
        photo, state = self.photo(embedding)[:, None], self._root(embedding)
        for level in range(self.tree.depth):
            parent, layer = self.tree.parent_of(level), self._layer(level)
            query = (self.out(state[0]) + photo)[:, parent]  # [B, n, hidden]
            scores = (query[:, :, None] @ layer.weight[:, :, None])[:, :, 0, 0] + layer.bias
            yield self.tree.log_softmax(level, scores)
            if level < self.tree.depth - 1:
                word = self.words[level + 1].expand(query.shape[0], -1, -1)
                state = self._step(word, (state[0][:, parent], state[1][:, parent]))

    def _layer(self, level: int) -> nn.Linear:
        layer = self.nodes[level]
        assert isinstance(layer, nn.Linear)
        return layer

    def _root(self, embedding: Tensor) -> State:
        """The state at the root, [B, 1, hidden] twice."""
        first = self.start(embedding).tanh()[:, None]
        return self._step(self.words[0].expand(first.shape[0], -1, -1), (first, torch.zeros_like(first)))

    def _step(self, words: Tensor, state: State) -> State:
        """words: [B, n, word]; states of n nodes before and after, [B, n, hidden] twice."""
        nodes = words.shape[1]
        before = [one.reshape(-1, self.options.hidden) for one in state]
        h, c = self.cell(words.reshape(-1, self.options.word), (before[0], before[1]))
        return h.reshape(-1, nodes, self.options.hidden), c.reshape(-1, nodes, self.options.hidden)

    @torch.no_grad()
    def beam(self, images: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The ``width`` most probable classes of a beam search: numbers and log-probabilities, [B, W] each, best first.

        At each level only the best ``width`` nodes are walked on from, for trees too large to decode whole. A beam as
        wide as the widest level finds the true best; W is less than ``width`` where there are fewer classes.
        """
        embedding = self.backbone(images).embedding
        photo, (h, c) = self.photo(embedding)[:, None], self._root(embedding)
        total = h.new_zeros(h.shape[0], 1)
        nodes = torch.zeros_like(total, dtype=torch.long)
        for level, count in enumerate(self.tree.sizes):
            children = self.tree.children_of(level)[nodes]  # [B, W, m]
            missing, real = children == count, children.clamp_max(count - 1)
            layer = self._layer(level)
            scores = ((self.out(h) + photo)[:, :, None] * layer.weight[real]).sum(3) + layer.bias[real]
            scores = scores.masked_fill(missing, float("-inf")).log_softmax(2) + total[:, :, None]
            total, best = scores.flatten(1).topk(min(width, count, scores[0].numel()))
            nodes, beam = real.flatten(1).gather(1, best), best // children.shape[2]
            if level < self.tree.depth - 1:
                at = beam[:, :, None].expand(-1, -1, self.options.hidden)
                h, c = self._step(self.words[level + 1][nodes], (h.gather(1, at), c.gather(1, at)))
        return nodes, total


class Unchanged(nn.Linear):
    """A linear layer that is the identity and cannot learn: [B, C] -> [B, C]."""

    def __init__(self, width: int):
        super().__init__(width, width)
        del self.weight, self.bias
        self.register_buffer("weight", torch.eye(width))
        self.register_buffer("bias", torch.zeros(width))
