"""What a phase of training is fed with: pictures, or the maps that the frozen part of the network makes of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fieldmark.data.augment import Augment
from fieldmark.data.loader import SHARE, Loader, Photos
from fieldmark.data.sampler import split_evenly
from fieldmark.nn.graph import export
from fieldmark.runtime.cache import atomic_write
from fieldmark.runtime.engine import compile_graph
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.machine import cores, memory_bytes
from fieldmark.runtime.preprocess import Preprocess
from fieldmark.train import interrupts

#: Photos whose maps are made at once.
CHUNK = 32
OUTPUT = "maps"
#: Chunks between two notes of how much is done.
NOTED = 64

Steps = Iterable[tuple[np.ndarray, int]]


class Lower:
    """The frozen part of a network as a compiled graph: images [B, 3, S, S] -> maps [B, C, H, W]."""

    def __init__(self, module: nn.Module, size: int, workers: int | None = None):
        self.workers = workers or cores()
        images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            self.shape = tuple(module(images).shape[1:])
        with TemporaryDirectory() as folder:
            path = Path(folder) / "lower.onnx"
            export(module, images, path, OUTPUT)
            self.engine = compile_graph(path, outputs=[OUTPUT], workers=self.workers)
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="fieldmark-lower")

    def __call__(self, images: Tensor) -> np.ndarray:
        """float32."""

        def one(number: int) -> np.ndarray:
            return self.engine.run(images[number : number + 1].contiguous().numpy(), [OUTPUT])[0][0]

        return np.stack(list(self._pool.map(one, range(len(images)))))

    def close(self) -> None:
        self._pool.shutdown()


class Feed:
    """Batches for training, and the held-out photos, as the network takes them.

    train, held: photos; size: side of the views (held-out photos have that of ``preprocess``); sides: epoch -> side,
    where it is not always that. lower, lower_held: the frozen part that they pass first, if the network is cut;
    lowers: by side, for views of other sides. device: where pictures are handed out (the frozen part runs on the CPU).
    """

    def __init__(
        self,
        train: Photos,
        held: Photos,
        preprocess: Preprocess,
        settings: Augment,
        *,
        size: int,
        seed: int,
        sides: Callable[[int], int] | None = None,
        lower: Lower | None = None,
        lower_held: Lower | None = None,
        lowers: Mapping[int, Lower] | None = None,
        workers: int | None = None,
        device: torch.device | str = "cpu",
    ):
        self.lower, self.lower_held = lower, lower_held
        self.lowers, self.sides = {} if lower is None else {**(lowers or {}), size: lower}, sides
        device = device if lower is None else "cpu"
        common: dict[str, Any] = {"seed": seed, "workers": workers, "device": device}
        self._made = lambda side: Loader(train, preprocess, settings, size=side, **common)
        self.train = self._made(size)
        self.held = Loader(held, preprocess, settings, **common)
        self._loaders = {size: self.train}
        self._kept: list[np.ndarray] = []

    def batches(self, steps: Steps) -> Iterator[Tensor]:
        """For each (row numbers, epoch) its views of that epoch: [B, ...]."""
        for side, some in groupby(steps, self._side):
            lower = self.lowers.get(side)
            if side not in self._loaders:
                self._loaders[side] = self._made(side)
            for images in self._loaders[side].batches(some):
                yield images if lower is None else maps_tensor(lower(images))

    def as_they_are(self, rows: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """The photos that are learned, with nothing varied, as those are seen that are answered to: [B, ...] each."""
        for images in self._made(self.held.size).batches((some, None) for some in rows):
            yield images if self.lower_held is None else maps_tensor(self.lower_held(images))

    def _side(self, step: tuple[np.ndarray, int]) -> int:
        """Pixels of the views of this step."""
        return self.train.size if self.sides is None else self.sides(step[1])

    def boxes(self, rows: np.ndarray, epoch: int) -> np.ndarray | None:
        """Where the photos' boxes lie in these views: float32 [B, K, 5], as in `Batch`; None where none are known."""
        return self.train.boxes(rows, epoch)

    def held_out(self, rank: int = 0, world: int = 1, batch: int = CHUNK) -> Iterator[Tensor]:
        """This process's share of the held-out photos, in order, as they are: [B, ...]."""
        self.keep_held(rank, world, batch)
        if self.lower_held is None:
            yield from self.held.batches(self._held_steps(rank, world, batch))
            return
        for maps in self._kept or self._held_maps(rank, world, batch):
            yield maps_tensor(maps.astype(np.float32))

    def keep_held(self, rank: int = 0, world: int = 1, batch: int = CHUNK) -> None:
        """What lies behind a cut is computed once, where there is memory for it."""
        if self.lower_held is None or self._kept:
            return
        photos = len(split_evenly(len(self.held.photos), rank, world))
        if photos * int(np.prod(self.lower_held.shape)) * 2 < memory_bytes() * SHARE:
            self._kept = list(self._held_maps(rank, world, batch))

    def _held_maps(self, rank: int, world: int, batch: int) -> Iterator[np.ndarray]:
        assert self.lower_held is not None
        for images in self.held.batches(self._held_steps(rank, world, batch)):
            yield self.lower_held(images).astype(np.float16)

    def _held_steps(self, rank: int, world: int, batch: int) -> list[tuple[np.ndarray, None]]:
        rows = split_evenly(len(self.held.photos), rank, world)
        return [(rows[at : at + batch], None) for at in range(0, len(rows), batch)]

    def close(self) -> None:
        for lower in {self.lower, self.lower_held, *self.lowers.values()}:
            if lower is not None:
                lower.close()


class CachedFeed(Feed):
    """A `Feed` whose maps are made once, for a number of views of each photo, and kept in a file.

    The file holds half-precision maps, view after view; beside it each process notes how much of its share is
    done, so that a killed run goes on where it was. View v of a photo is that of epoch v; epoch e sees view e
    modulo their number.
    """

    def __init__(self, *arguments: Any, views: int, file: Path, **more: Any):
        super().__init__(*arguments, **more)
        assert self.lower is not None
        self.views, self.file = views, file
        self.count = len(self.train.photos)
        self.shape = (views * self.count, *self.lower.shape)
        self._maps: np.memmap | None = None

    def build(
        self,
        progress: Callable[[int, int], None] | None = None,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Make the maps that are not there yet. progress: told (done, total) photos."""
        assert self.lower is not None
        with interrupts.alone():
            if rank == 0:
                self._create()
        maps = self._maps = np.memmap(self.file, np.float16, "r+", shape=self.shape)
        steps = [
            (np.arange(at, min(at + CHUNK, self.count)), view)
            for view in range(self.views)
            for at in range(0, self.count, CHUNK)
        ][rank::world]
        note = self.file.with_suffix(f".{rank}-{world}.json")
        done = _noted(note)
        with interrupts.alone():
            for images in self.train.batches(steps[done:]):
                rows, view = steps[done]
                start = view * self.count + int(rows[0])
                maps[start : start + len(rows)] = self.lower(images)
                done += 1
                if done % NOTED == 0 or done == len(steps):
                    maps.flush()
                    with atomic_write(note) as temporary:
                        temporary.write_text(json.dumps(done), encoding="utf-8")
                if progress:
                    progress(min(done * CHUNK * world, self.shape[0]), self.shape[0])

    def batches(self, steps: Steps) -> Iterator[Tensor]:
        assert self._maps is not None, "build first"
        for rows, epoch in steps:
            places = (epoch % self.views) * self.count + np.asarray(rows)
            yield maps_tensor(self._maps[places].astype(np.float32))

    def boxes(self, rows: np.ndarray, epoch: int) -> np.ndarray | None:
        return self.train.boxes(rows, epoch % self.views)

    def _create(self) -> None:
        """An empty file of the right length, unless it is there; without it, notes of what is done are void."""
        size = int(np.prod(self.shape)) * 2
        if self.file.is_file() and self.file.stat().st_size == size:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for note in self.file.parent.glob(f"{self.file.stem}.*.json"):
            note.unlink()
        try:
            with self.file.open("wb") as file:
                if reserve := getattr(
                    os, "posix_fallocate", None
                ):  # a full disk would kill the process later
                    reserve(file.fileno(), 0, size)
                file.truncate(size)
        except OSError as error:
            self.file.unlink(missing_ok=True)
            raise FieldmarkError(
                f"cannot keep {size / 1e9:.1f} GB of maps at {self.file} ({error.strerror or error}): "
                "free some room, or give less --cache-gb"
            ) from error

    def close(self) -> None:
        super().close()
        self._maps = None


def _noted(note: Path) -> int:
    try:
        return int(json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return 0


def maps_tensor(maps: np.ndarray) -> Tensor:
    """[B, C, H, W] float32, channels last; behind the pooling there are vectors [B, C]."""
    x = torch.from_numpy(maps)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
