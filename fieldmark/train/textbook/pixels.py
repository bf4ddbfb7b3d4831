"""Small photos for a network from scratch: all of them in memory as pixels, shifted and mirrored a batch at a time.

A view of `fieldmark.data.augment` costs a photo's worth of Python. Where photos are small and a view is only a
shift and a mirror, that would be more than the network's own work, so batches are gathered in one go here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import tee
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fieldmark.data.augment import Augment
from fieldmark.data.loader import Photos, normalise
from fieldmark.data.sampler import split_evenly
from fieldmark.runtime import image
from fieldmark.runtime.errors import ImageError
from fieldmark.runtime.machine import cores, memory_bytes
from fieldmark.runtime.preprocess import Preprocess
from fieldmark.runtime.stream import ordered_map
from fieldmark.train.loop.feeds import Feed, Steps

#: Share of the free memory that the pixels may fill; beyond it they lie in a file.
SHARE = 1 / 3
#: Photos by which the size of a set is told, and held-out photos that are answered at once.
LOOKED_AT, CHUNK = 300, 256


class Pixels(NamedTuple):
    """All photos as the network reads them.

    images: uint8 [N, S, S, 3], zeros where a photo cannot be read; content: [N] content hashes; errors: row ->
    why it cannot.
    """

    images: np.ndarray
    content: list[str]
    errors: dict[int, str]


def read_pixels(
    paths: Sequence[str],
    preprocess: Preprocess,
    file: Path,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Pixels:
    """Read N photos, on threads. file: where the pixels go if memory is short. progress: told how many are done."""
    side = preprocess.size
    shape = (len(paths), side, side, 3)
    if np.prod(shape, dtype=np.int64) <= memory_bytes() * SHARE:
        images = np.zeros(shape, np.uint8)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        images = np.memmap(file, np.uint8, "w+", shape=shape)
    content = [""] * len(paths)
    errors: dict[int, str] = {}

    def read(start: int) -> int:
        for row in range(start, min(start + 64, len(paths))):
            try:
                data = image.read(paths[row])
                images[row] = preprocess.pixels(image.decode(data, preprocess.min_side))
                content[row] = image.content_hash(data)
            except ImageError as error:
                errors[row] = str(error)
        return min(start + 64, len(paths))

    for done in ordered_map(read, range(0, len(paths), 64), workers or cores()):
        if progress:
            progress(done)
    return Pixels(images, content, dict(sorted(errors.items())))


def longest_side(paths: Sequence[str]) -> int:
    """Pixels of the longest side among up to 300 of these photos; 0 where none can be read."""
    longest = 0
    step = -(-len(paths) // LOOKED_AT)
    for path in paths[::step]:
        try:
            longest = max(longest, *image.load(path).size)
        except ImageError:
            continue
    return longest


def moved(
    views: np.ndarray, rows: np.ndarray, count: int, shift: int, flip: bool, seed: int, epoch: int
) -> np.ndarray:
    """Views [B, S, S, 3] moved by up to ``shift`` pixels either way, and half of them mirrored.

    rows: [B], which of the ``count`` photos they show. What comes in at a border repeats it. Where a view goes is a
    function of (seed, epoch, row) alone.
    """
    if not shift and not flip:
        return views
    by, mirrored = _moves(count, shift, seed, epoch)
    side = views.shape[1]
    line = np.arange(side)
    y, x = (np.clip(line + by[rows, axis, None], 0, side - 1) for axis in (0, 1))
    if flip:
        x = np.where(mirrored[rows, None], x[:, ::-1], x)
    return views[np.arange(len(views))[:, None, None], y[:, :, None], x[:, None, :]]


def to_tensor(pixels: np.ndarray, preprocess: Preprocess) -> Tensor:
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S], channels last."""
    return normalise(torch.from_numpy(np.ascontiguousarray(pixels)), preprocess)


@lru_cache(maxsize=4)
def _moves(count: int, shift: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Of all photos in an epoch: pixels down and right [N, 2], and which are mirrored [N]."""
    chance = np.random.default_rng([seed, epoch])
    return chance.integers(-shift, shift + 1, (count, 2)), chance.random(count) < 0.5


class PixelFeed(Feed):
    """Batches from pixels that are held already.

    images: [N, S, S, 3] of `Pixels`; rows: those that train and those that are held out; photos: likewise. shift:
    the most that a view is moved, as a share of the side. Of ``settings`` a mirror (and mixing, which is the
    loop's) is done here; where they ask for more, views are made of the photos themselves, and moved.
    """

    def __init__(
        self,
        images: np.ndarray,
        rows: tuple[np.ndarray, np.ndarray],
        photos: tuple[Photos, Photos],
        preprocess: Preprocess,
        settings: Augment,
        *,
        shift: float,
        seed: int,
        workers: int | None = None,
    ):
        super().__init__(*photos, preprocess, settings, size=preprocess.size, seed=seed, workers=workers)
        self.images, self.own, self.preprocess = images, rows, preprocess
        self.settings, self.seed, self.shift = settings, seed, round(shift * preprocess.size)
        here = {name: getattr(settings, name) for name in ("flip", "mixup", "cutmix")}
        #: Is a view a move and a mirror, and nothing else?
        self.plain = settings == Augment.none().model_copy(update=here)

    def batches(self, steps: Steps) -> Iterator[Tensor]:
        count, flip = len(self.own[0]), self.settings.flip and self.plain
        for views, rows, epoch in self._views(steps):
            yield to_tensor(moved(views, rows, count, self.shift, flip, self.seed, epoch), self.preprocess)

    def held_out(self, rank: int = 0, world: int = 1, batch: int = CHUNK) -> Iterator[Tensor]:
        rows = self.own[1][split_evenly(len(self.own[1]), rank, world)]
        for at in range(0, len(rows), batch):
            yield to_tensor(self.images[rows[at : at + batch]], self.preprocess)

    def _views(self, steps: Steps) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Views [B, S, S, 3], rows [B] and epoch of each step."""
        if self.plain:
            yield from ((self.images[self.own[0][rows]], rows, epoch) for rows, epoch in steps)
            return
        ours, loaders = tee(steps)
        views = self.train.batches(loaders, raw=True)
        try:
            yield from ((one.numpy(), rows, epoch) for one, (rows, epoch) in zip(views, ours, strict=False))
        finally:
            views.close()
