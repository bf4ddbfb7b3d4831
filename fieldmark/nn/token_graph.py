"""Tokens of a feature pyramid: levels joined, the telling tokens selected, and those combined by a graph.

Chou et al., "A Novel Plug-in Module for Fine-Grained Visual Classification", 2022 (section 3), and "Fine-grained
Visual Classification with High-temperature Refinement and Background Suppression", 2023. A token is the vector of
one position of one level's map; tokens [B, N, D].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn.functional import interpolate

#: Weight at first of what the tokens themselves say about who is whose neighbour. The authors begin with 0, which
#: gives queries and keys no gradient in the first step.
ADAPTIVE = 0.01
#: One in so many selected tokens is a node of the graph.
TOKENS_A_NODE = 32


class TopDown(nn.Module):
    """Maps [B, C_i, H_i, W_i], fine to coarse, -> maps [B, D, H_i, W_i]: each projected, plus the coarser one resized.

    P_i = project(M_i) + resize(P_(i+1)) (Lin et al., "Feature Pyramid Networks", CVPR 2017, figure 3). Channels are
    normalised at each position first, for networks' stages differ much in scale.
    """

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        self.project = nn.ModuleList(nn.Sequential(LayerNorm2d(c), *_two(c, width)) for c in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        out = [project(one) for project, one in zip(self.project, maps, strict=True)]
        for i in reversed(range(len(out) - 1)):
            out[i] = out[i] + resized(out[i + 1], out[i].shape[2:])
        return out


class BottomUp(nn.Module):
    """Maps [B, D, H_i, W_i], fine to coarse, -> the same shapes: each projected, plus the finer one resized."""

    def __init__(self, levels: int, width: int):
        super().__init__()
        self.project = nn.ModuleList(nn.Sequential(*_two(width, width)) for _ in range(levels))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        out = [project(one) for project, one in zip(self.project, maps, strict=True)]
        for i in range(1, len(out)):
            out[i] = out[i] + resized(out[i - 1], out[i].shape[2:])
        return out


def _two(channels: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, width, 1)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, [B, C, H, W] -> [B, C, *size]; to half of an even side it is the mean of 2 x 2 positions."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def tokens_of(x: Tensor) -> Tensor:
    """[B, D, H, W] -> [B, H W, D], row by row."""
    return x.flatten(2).transpose(1, 2)


def most_certain(logits: Tensor) -> Tensor:
    """The largest probability of each token: logits [B, N, C] -> [B, N]."""
    return logits.softmax(2).amax(2)


def of_the_answer(logits: Tensor) -> Tensor:
    """Each token's probability of the class that all tokens together answer: logits [B, N, C] -> [B, N]."""
    answer = logits.mean(1, keepdim=True).argmax(2, keepdim=True)
    return logits.softmax(2).gather(2, answer.expand(-1, logits.shape[1], -1))[:, :, 0]


def select(tokens: Tensor, score: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The ``keep`` tokens of the highest score, best first: tokens [B, N, D], score [B, N] -> [B, keep, D], and their
    numbers [B, keep]."""
    index = score.topk(keep, 1).indices
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2])), index


def suppression(logits: Tensor, index: Tensor) -> Tensor:
    """Mean of (tanh(l) + 1)^2 over the classes of all tokens that are not selected; 0 where all are.

    logits: [B, N, C]; index: [B, k] of the selected ones. What was left out should speak for no class.
    """
    batch, count, classes = logits.shape
    left = torch.ones(batch, count, device=logits.device).scatter(1, index, 0.0)
    loud = (logits.float().tanh() + 1).square().sum(2) * left
    return loud.sum() / (batch * max(1, count - index.shape[1]) * classes)


class TokenGraph(nn.Module):
    """S tokens [B, S, D] -> one vector [B, D], by way of S' = S / 32 nodes (at least 2) with learned edges.

    X = W_in tokens (S -> S'); A = A_0 + a tanh(q_i - k_j), q = W_q X, k = W_k X, one number for each node (the authors
    take the mean of several, which is one linear map too); X = norm(A^T (X W)); then W_out (S' -> 1).
    """

    def __init__(self, tokens: int, width: int, dropout: float = 0.1):
        super().__init__()
        nodes = max(2, tokens // TOKENS_A_NODE)
        self.gather = nn.Linear(tokens, nodes)
        self.edges = nn.Parameter(torch.eye(nodes) / 100 + 1 / 100)
        self.adaptive = nn.Parameter(torch.tensor([ADAPTIVE]))
        self.query, self.key = (nn.Linear(width, 1, bias=False) for _ in range(2))
        self.mix = nn.Linear(width, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.join = nn.Linear(nodes, 1)
        self.dropout = nn.Dropout(dropout)

    def adjacency(self, x: Tensor) -> Tensor:
        """Nodes [B, S', D] -> weights of their edges [B, S', S']."""
        return self.edges + self.adaptive * (self.query(x) - self.key(x).transpose(1, 2)).tanh()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.gather(tokens.transpose(1, 2)).transpose(1, 2)
        x = self.adjacency(x).transpose(1, 2) @ self.mix(x)
        x = self.norm(x.transpose(1, 2))
        return self.dropout(self.join(x)[:, :, 0])
