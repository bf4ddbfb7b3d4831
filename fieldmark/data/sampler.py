"""The order in which photos are trained on: pure functions of the seed and the epoch, numpy only.

Each class's photos are an endless sequence of shuffled rounds. An epoch says how many of each class come, goes
on in each sequence where the last epoch ended, and mixes the classes. So no photo comes again before its class
is through, across epochs too, and any epoch can be had without having gone through those before it.

For losses that compare photos of one class, `paired` takes several of them at once from each sequence.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

Sampler = Literal["all", "balanced", "square_root", "paired"]
SAMPLERS: tuple[str, ...] = get_args(Sampler)
#: Photos of one class that come together in ``paired`` (Zhuang et al., API-Net, AAAI 2020).
GROUP = 4
#: What a stream of chance is for, so that no two are the same.
_SHARES, _ROUND, _MIX, _CYCLE = 1, 2, 3, 4


def epoch_order(
    labels: np.ndarray,
    epoch: int,
    seed: int,
    how: Sampler = "all",
    n: int | None = None,
    batch: int | None = None,
) -> np.ndarray:
    """Row numbers of the photos of an epoch, int64 [n].

    labels: [N], of any kind; epoch: from 0; n: how many photos an epoch has (none: N; the same in all
    epochs). ``all``: every photo once before any comes again, so a permutation for n = N. ``balanced``: a
    place goes to each of the C classes with probability 1 / C; ``square_root``: with probability
    proportional to the root of its count of photos (Mikolov et al., NIPS 2013; Mahajan et al., ECCV
    2018). The counts of an epoch are as even as whole numbers can be: n p, rounded down or up. ``paired``: `paired`
    in batches of ``batch`` photos, of all processes together; a last short batch is left out. Raises ValueError for
    no photos, an unknown ``how``, negative numbers, and ``paired`` without a batch.
    """
    labels = np.asarray(labels)
    n = len(labels) if n is None else n
    if how not in SAMPLERS:
        raise ValueError(f"how is {how!r}: it is one of {', '.join(SAMPLERS)}")
    if not len(labels) or n < 0 or epoch < 0 or seed < 0:
        raise ValueError(
            f"{len(labels)} photos, n {n}, epoch {epoch}, seed {seed}: photos are needed, numbers >= 0"
        )
    if how == "paired":
        return paired(labels, epoch, seed, n, batch or 0)
    if how == "all":
        labels = np.zeros(len(labels), np.int64)
    _, member, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    rows = np.split(np.argsort(member, kind="stable"), np.cumsum(sizes)[:-1])
    share = np.sqrt(sizes) if how == "square_root" else np.ones(len(sizes))
    before = np.zeros(len(sizes), np.int64)
    for past in range(epoch):
        before += _counts(share, n, past, seed)
    counts = _counts(share, n, epoch, seed)
    drawn = [
        own[_rounds(len(own), start, count, c, seed)]
        for c, (own, start, count) in enumerate(zip(rows, before.tolist(), counts.tolist(), strict=True))
        if count
    ]
    order = np.concatenate([np.empty(0, np.int64), *drawn])
    if len(drawn) < 2:  # one class: its rounds are shuffled already
        return order
    places = np.repeat(np.arange(len(sizes)), counts)
    places = np.random.default_rng([seed, _MIX, epoch]).permutation(places)
    mixed = np.empty(n, np.int64)
    mixed[np.argsort(places, kind="stable")] = order  # a class's own sequence stays in its order
    return mixed


def paired(labels: np.ndarray, epoch: int, seed: int, n: int, batch: int, group: int = GROUP) -> np.ndarray:
    """Row numbers [n // batch * batch] in batches of groups, each of ``group`` photos of one class, side by side.

    A class has groups in proportion to its photos, so that all photos come alike often, and they are spread over
    the batches: no class is twice in a batch unless it has more groups than there are batches. A group goes on in
    the class's sequence of rounds where the last one ended; it has a photo twice only where the class has fewer
    than a group. A batch that groups do not fill up to the last place has a few that are larger; one of 4 photos
    and more has two groups at least. With several processes each has whole groups if its part is a multiple of
    ``group``.
    """
    if batch < 1:
        raise ValueError("pairs are put together in batches: batch is needed")
    _, member, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    rows = np.split(np.argsort(member, kind="stable"), np.cumsum(sizes)[:-1])
    steps, many = n // batch, max(batch // group, min(2, batch // 2), 1)
    wide = -(-batch // many)
    before = np.zeros(len(sizes), np.int64)
    for past in range(epoch):
        before += _counts(sizes, steps * many, past, seed)
    counts = _counts(sizes, steps * many, epoch, seed)
    drawn = [
        own[_groups(len(own), wide, start, count, c, seed)]
        for c, (own, start, count) in enumerate(zip(rows, before.tolist(), counts.tolist(), strict=True))
        if count
    ]
    chance = np.random.default_rng([seed, _MIX, epoch])
    turn = chance.permutation(len(sizes))  # class after class is dealt out to the batches in turn
    batches = np.repeat(turn, counts[turn]).reshape(many, steps).T
    places = chance.permuted(chance.permutation(batches), axis=1).ravel()
    mixed = np.empty((steps * many, wide), np.int64)
    mixed[np.argsort(places, kind="stable")] = np.concatenate([np.empty((0, wide), np.int64), *drawn])
    room = np.array([len(part) for part in np.array_split(np.arange(batch), many)])
    return mixed.reshape(steps, many, wide)[:, np.arange(wide) < room[:, None]].ravel()


def _counts(share: np.ndarray, n: int, epoch: int, seed: int) -> np.ndarray:
    """How many of each class come, int64 [C] with sum n: expected n p, off by less than one (systematic sampling).

    The classes lie in a new order each epoch, so that no two always share a remainder.
    """
    chance = np.random.default_rng([seed, _SHARES, epoch])
    order = chance.permutation(len(share))
    edges = np.floor(np.cumsum(share[order])[:-1] * (n / share.sum()) + chance.random()).clip(max=n)
    counts = np.empty(len(share), np.int64)
    counts[order] = np.diff(edges, prepend=0, append=n)
    return counts


def _rounds(size: int, start: int, count: int, which: int, seed: int) -> np.ndarray:
    """Places ``start`` to ``start + count`` of the endless sequence of shuffles of 0 .. size - 1, int64."""
    if size == 1:
        return np.zeros(count, np.int64)
    first, last = start // size, (start + count - 1) // size
    shuffles = [
        np.random.default_rng([seed, _ROUND, which, r]).permutation(size) for r in range(first, last + 1)
    ]
    return np.concatenate(shuffles)[start - first * size :][:count]


def _groups(size: int, wide: int, start: int, count: int, which: int, seed: int) -> np.ndarray:
    """Groups ``start`` to ``start + count`` of a class's endless sequence: places 0 .. size - 1, int64 [count, wide].

    The sequence is made of cycles, the fewest rounds that whole groups fill, so that any can be had by itself.
    """
    many = size // math.gcd(size, wide)
    first, last = start // many, (start + count - 1) // many
    cycles = [
        _cycle(size, wide, np.random.default_rng([seed, _CYCLE, which, number]))
        for number in range(first, last + 1)
    ]
    return np.concatenate(cycles)[start - first * many :][:count]


def _cycle(size: int, wide: int, chance: np.random.Generator) -> np.ndarray:
    """Shuffled rounds until groups end with a round, int64 [groups, wide]: each begins with photos that the group
    which was begun in the last one does not have."""
    out = np.empty(0, np.int64)
    while not len(out) or len(out) % wide:
        order, begun = chance.permutation(size), out[len(out) // wide * wide :]
        fresh = order[~np.isin(order, begun)][: wide - len(begun)]
        out = np.concatenate([out, fresh, order[~np.isin(order, fresh)]])
    return out.reshape(-1, wide)


def shard(order: np.ndarray, rank: int, world: int, batch: int, drop: bool = True) -> np.ndarray:
    """One process's part of every global batch: [steps, batch / world], the same number of steps for all.

    order: [n], the same in every process; rank: 0 to world - 1; batch: photos of all processes together,
    divisible by world. The ranks' rows side by side are the batch that one process would see. The last
    short batch is dropped (``drop``) or filled up from the front of the order: for training only. Raises
    ValueError for numbers that cannot be, and where no full batch is left.
    """
    if not 0 <= rank < world or batch < 1 or batch % world:
        raise ValueError(f"batch {batch} of {world} processes, rank {rank}: not divisible, or no such rank")
    order = np.asarray(order)
    steps = len(order) // batch if drop else -(-len(order) // batch)
    if not steps:
        raise ValueError(f"{len(order)} photos do not fill a batch of {batch}")
    return np.resize(order, steps * batch).reshape(steps, world, batch // world)[:, rank]


def split_evenly(n: int, rank: int, world: int) -> np.ndarray:
    """One process's share of the rows 0 .. n - 1, int64: in one piece, none twice, sizes differ by one at most.

    For evaluation: the shares of all ranks, joined in order, are all rows.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world} processes: no such rank")
    return np.arange(n * rank // world, n * (rank + 1) // world, dtype=np.int64)
