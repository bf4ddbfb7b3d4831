"""Which photos a step learns from, and their views: what lies between the order of an epoch and a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from fieldmark.data.sampler import epoch_order, shard
from fieldmark.train.loop.feeds import Feed
from fieldmark.train.plan.plan import Plan


class Batches:
    """The batches of one process.

    labels: [N] of the photos of ``feed.train``; batch: photos a step, of all processes; views: of each photo; rank,
    world: this process, and how many there are. waited: seconds in which a step waited for photos.
    """

    def __init__(
        self, feed: Feed, labels: np.ndarray, plan: Plan, batch: int, views: int, rank: int, world: int
    ):
        self.feed, self.labels, self.plan, self.batch, self.views = feed, labels, plan, batch, views
        self.rank, self.world = rank, world
        self.epoch_steps = len(labels) // batch
        self.waited = 0.0

    def orders(self, step: int) -> Iterator[tuple[np.ndarray, int]]:
        """Row numbers [B] and the epoch, for every step from this one on."""
        epoch, own = -1, np.empty((0, 0), np.int64)
        while True:
            if step // self.epoch_steps != epoch:
                epoch = step // self.epoch_steps
                order = epoch_order(self.labels, epoch, self.plan.seed, self.plan.sampler, batch=self.batch)
                own = shard(order, self.rank, self.world, self.batch)
            yield own[step % self.epoch_steps], epoch
            step += 1

    def since(self, step: int) -> Iterator[tuple[np.ndarray, Tensor, Tensor | None]]:
        """Row numbers [B], V views (pictures or maps) [V B, ...] and boxes in them [V B, K, 5], if the photos have any:
        for every step from this one on."""
        feed = self.feed.batches(
            (rows, epoch * self.views + view)
            for rows, epoch in self.orders(step)
            for view in range(self.views)
        )
        try:
            for rows, epoch in self.orders(step):
                asked = time.perf_counter()
                views = list(islice(feed, self.views))
                boxes = [self.feed.boxes(rows, epoch * self.views + view) for view in range(self.views)]
                known = [torch.from_numpy(one) for one in boxes if one is not None]
                images = torch.cat(views) if self.views > 1 else views[0]
                self.waited += time.perf_counter() - asked
                yield rows, images, torch.cat(known) if known else None
        finally:
            feed.close()  # type: ignore[attr-defined]

    def all(self, varied: bool = True) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Every photo and row numbers: one view of each or, not ``varied``, as it is."""
        parts = np.array_split(np.arange(len(self.labels)), self.epoch_steps)
        feed = self.feed.batches((rows, 0) for rows in parts) if varied else self.feed.as_they_are(parts)
        yield from zip(feed, parts, strict=True)
