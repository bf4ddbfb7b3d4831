"""Prototypes: vectors that stand for parts of a class, and the patches of photos that come nearest to them.

Chen et al., "This Looks Like That: Deep Learning for Interpretable Image Recognition" (ProtoPNet), NeurIPS 2019.
A patch is the vector of one position of a map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

#: What keeps the similarity of a patch that is the prototype finite.
EPSILON = 1e-4


def distances(x: Tensor, vectors: Tensor) -> Tensor:
    """Squared Euclidean distances: patches of [B, C, H, W] to vectors [P, C] -> [B, P, H, W].

    |x|^2 - 2 x.p + |p|^2, as one 1x1 convolution, in single precision: in half of it the difference is noise. Both
    are moved by the mean of the vectors first, so that large squares do not swallow small distances.
    """
    with torch.autocast(x.device.type, enabled=False):
        middle = vectors.detach().float().mean(0)
        x, vectors = x.float() - middle[:, None, None], vectors.float() - middle
        cross = nn.functional.conv2d(x, vectors[:, :, None, None])
        own = vectors.square().sum(1)[:, None, None]
        return (x.square().sum(1, keepdim=True) - 2 * cross + own).clamp_min(0)


def similarity(distance: Tensor, epsilon: float = EPSILON) -> Tensor:
    """log((d + 1) / (d + epsilon)): 0 far away, log(1 / epsilon) at the prototype (ProtoPNet, section 2.1)."""
    return ((distance + 1) / (distance + epsilon)).log()


def cluster_and_separation(distance: Tensor, owner: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over photos of the least distance to a prototype of their class, and to one of another class.

    distance: [B, P], of each photo's nearest patch; owner: [P], the prototypes' classes; labels: [B] (ProtoPNet,
    section 2.2; the paper's separation cost is minus the second).
    """
    own = labels[:, None] == owner
    far = torch.finfo(distance.dtype).max
    return distance.masked_fill(~own, far).amin(1).mean(), distance.masked_fill(own, far).amin(1).mean()


class Patches(NamedTuple):
    """Patches of photos that show what prototypes are.

    prototype, photo: [K] numbers; centre: [K, 2] down and across, as shares of the sides of the picture that the
    network was given of the photo; side: of a patch, height and width, as such shares.
    """

    prototype: Tensor
    photo: Tensor
    centre: Tensor
    side: tuple[float, float]


class Most:
    """For every prototype the ``keep`` photos in which it is most present, and where; only where it is present by
    ``least`` or more."""

    def __init__(self, keep: int, least: float = 0.0):
        self.keep, self.least = keep, least
        self.seen = 0
        self.rows: list[Tensor] = []
        self.shape = (1, 1)

    @torch.no_grad()
    def see(self, presence: Tensor) -> None:
        """The next photos: [B, P, H, W]."""
        batch, many = presence.shape[:2]
        self.shape = presence.shape[2], presence.shape[3]
        value, at = presence.flatten(2).max(2)
        photo = torch.arange(self.seen, self.seen + batch).to(value)[:, None].expand(batch, many)
        self.rows.append(torch.stack([value, photo, at.to(value)]))
        value, photo, at = torch.cat(self.rows, 1)  # [n, P] each
        best = value.topk(min(self.keep, len(value)), 0).indices
        self.rows = [torch.stack([one.gather(0, best) for one in (value, photo, at)])]
        self.seen += batch

    def patches(self) -> Patches:
        value, photo, at = self.rows[0].transpose(1, 2).flatten(1).double()
        number = torch.arange(len(value)) // self.rows[0].shape[1]
        there = (value >= self.least).cpu()
        height, width = self.shape
        at = at.long()
        centre = torch.stack([(at // width + 0.5) / height, (at % width + 0.5) / width], 1)
        return Patches(number[there], photo.long().cpu()[there], centre.cpu()[there], (1 / height, 1 / width))


class Prototypes(nn.Module):
    """``each`` prototypes for every class: [B, C, H, W] -> squared distances [B, P, H, W], P = classes * each.

    vectors: [P, C], what learns; owner: [P], their classes. Once they were put on patches to stay there (`push`),
    ``patches`` [P, C] count instead of the vectors: a buffer, so that it is part of every checkpoint.
    place: [P, 3], which patch they were last put on: number of the photo, and the patch's centre, down and across, as
    shares of the side of the picture that the network was given of it; -1: none.
    """

    owner: Tensor
    place: Tensor
    patches: Tensor
    settled: Tensor

    def __init__(self, classes: int, each: int, width: int):
        super().__init__()
        self.vectors = nn.Parameter(torch.rand(classes * each, width))
        self.register_buffer("owner", torch.arange(classes).repeat_interleave(each), persistent=False)
        self.register_buffer("place", torch.full((classes * each, 3), -1.0))
        self.register_buffer("patches", torch.zeros(classes * each, width))
        self.register_buffer("settled", torch.zeros(1))

    def current(self) -> Tensor:
        """[P, C]."""
        return torch.where(self.settled > 0.5, self.patches, self.vectors)

    def forward(self, x: Tensor) -> Tensor:
        return distances(x, self.current())

    @torch.no_grad()
    def push(self, found: Cheapest, stay: bool = True) -> None:
        """Each prototype becomes the patch that was found for it; one without stays where it is.

        stay: do they stay there from now on, or go on learning?
        """
        new = found.cost.isfinite()
        self.vectors.copy_(torch.where(new[:, None], found.vectors, self.current()))
        self.place[new] = found.place[new]
        self.patches.copy_(self.vectors)
        self.settled.fill_(float(stay))


class Cheapest:
    """For every prototype the patch of least cost among photos of its class, as they come."""

    def __init__(self, prototypes: Prototypes):
        self.owner = prototypes.owner
        self.cost = torch.full_like(prototypes.place[:, 0], torch.inf)
        self.vectors = torch.zeros_like(prototypes.vectors)
        self.place = torch.full_like(prototypes.place, -1.0)
        self.seen = 0

    @torch.no_grad()
    def see(self, x: Tensor, labels: Tensor, cost: Tensor) -> None:
        """The next photos: patches of [B, C, H, W], class numbers [B], and what each patch costs [B, P, H, W]."""
        batch, _, height, width = x.shape
        foreign = labels[:, None] != self.owner
        cost = cost.masked_fill(foreign[:, :, None, None], torch.inf).transpose(0, 1).flatten(1)
        least, at = cost.min(1)
        better = least < self.cost
        photo, within = at // (height * width), at % (height * width)
        down, across = within // width, within % width
        place = torch.stack([photo + self.seen, (down + 0.5) / height, (across + 0.5) / width], 1)
        vectors = x.permute(0, 2, 3, 1).flatten(0, 2)[at]
        self.cost = torch.where(better, least, self.cost)
        self.place = torch.where(better[:, None], place.to(self.place.dtype), self.place)
        self.vectors = torch.where(better[:, None], vectors.to(self.vectors.dtype), self.vectors)
        self.seen += batch
