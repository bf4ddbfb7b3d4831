"""What a phase of training is fed with: pictures, or the maps that the frozen part of the network makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from fieldmark.data.augment import Augment
from fieldmark.data.loader import Loader, Photos
from fieldmark.data.sampler import split_evenly
from fieldmark.nn.graph import export
from fieldmark.runtime.cache import atomic_write
from fieldmark.runtime.engine import compile_graph
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.machine import cores
from fieldmark.runtime.preprocess import Preprocess

#: Photos whose maps are made at once.
CHUNK = 32
OUTPUT = "maps"

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

    train, held: photos; size: side of the views (held-out photos have that of ``preprocess``). lower, lower_held:
    the frozen part that they pass first, if the network is cut.
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
        lower: Lower | None = None,
        lower_held: Lower | None = None,
        workers: int | None = None,
    ):
        self.lower, self.lower_held = lower, lower_held
        self.train = Loader(train, preprocess, settings, size=size, seed=seed, workers=workers)
        self.held = Loader(held, preprocess, settings, seed=seed, workers=workers)
        self._kept: list[np.ndarray] = []

    def batches(self, steps: Steps) -> Iterator[Tensor]:
        """For each (row numbers, epoch) its views of that epoch: [B, ...]."""
        for images in self.train.batches(steps):
            yield images if self.lower is None else _tensor(self.lower(images))

    def held_out(self, rank: int = 0, world: int = 1, batch: int = CHUNK) -> Iterator[Tensor]:
        """This process's share of the held-out photos, in order, as they are: [B, ...].

        What lies behind a cut is computed once.
        """
        rows = split_evenly(len(self.held.photos), rank, world)
        steps = [(rows[at : at + batch], None) for at in range(0, len(rows), batch)]
        if self.lower_held is None:
            yield from self.held.batches(steps)
            return
        if not self._kept:
            self._kept = [self.lower_held(images).astype(np.float16) for images in self.held.batches(steps)]
        for maps in self._kept:
            yield _tensor(maps.astype(np.float32))

    def close(self) -> None:
        for lower in (self.lower, self.lower_held):
            if lower is not None:
                lower.close()


class CachedFeed(Feed):
    """A `Feed` whose maps are made once, for a number of views of each photo, and kept in a file.

    The file holds half-precision maps, view after view; beside it stands how many are done, so that a killed
    run goes on where it was. View v of a photo is that of epoch v; epoch e sees view e modulo their number.
    """

    def __init__(self, *arguments: object, views: int, file: Path, **more: object):
        super().__init__(*arguments, **more)  # type: ignore[arg-type]
        assert self.lower is not None
        self.views, self.file = views, file
        self._note = file.with_suffix(".json")
        self.count = len(self.train.photos)
        self.shape = (views * self.count, *self.lower.shape)
        self._maps: np.memmap | None = None

    def build(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Make the maps that are not there yet. progress: told (done, total)."""
        assert self.lower is not None
        total, done = self.shape[0], self._done()
        maps = self._open(fresh=done == 0)
        rows = np.arange(self.count)
        steps = [
            (rows[at : at + CHUNK], view) for view in range(self.views) for at in range(0, self.count, CHUNK)
        ]
        starts = [view * self.count + int(chosen[0]) for chosen, view in steps]
        left = [number for number, start in enumerate(starts) if start >= done]
        noted = done
        for number, images in zip(left, self.train.batches([steps[n] for n in left]), strict=True):
            start = starts[number]
            maps[start : start + len(images)] = self.lower(images)
            done = start + len(images)
            if done - noted > 2048 or done == total:
                maps.flush()
                self._write(done)
                noted = done
            if progress:
                progress(done, total)

    def batches(self, steps: Steps) -> Iterator[Tensor]:
        assert self._maps is not None, "build first"
        for rows, epoch in steps:
            places = (epoch % self.views) * self.count + np.asarray(rows)
            yield _tensor(self._maps[places].astype(np.float32))

    def _open(self, fresh: bool) -> np.memmap:
        try:
            self._maps = np.memmap(self.file, np.float16, "w+" if fresh else "r+", shape=self.shape)
        except OSError as error:
            raise FieldmarkError(
                f"cannot keep {np.prod(self.shape) * 2 / 1e9:.1f} GB of maps at {self.file} "
                f"({error.strerror or error}): free some room, or give less --cache-gb"
            ) from error
        return self._maps

    def _done(self) -> int:
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            whole = self.file.stat().st_size == int(np.prod(self.shape)) * 2
            return int(note["done"]) if whole and note["shape"] == list(self.shape) else 0
        except (OSError, ValueError, KeyError):
            return 0

    def _write(self, done: int) -> None:
        with atomic_write(self._note) as temporary:
            temporary.write_text(json.dumps({"shape": list(self.shape), "done": done}), encoding="utf-8")

    def close(self) -> None:
        super().close()
        self._maps = None


def _tensor(maps: np.ndarray) -> Tensor:
    """[B, C, H, W] float32, channels last."""
    return torch.from_numpy(maps).contiguous(memory_format=torch.channels_last)
