"""Photos to batches, on threads: pillow works outside Python's lock, so no worker process is needed.

Nothing is pickled, nothing is forked, and no process can be left over.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fieldmark.data.augment.geometry import view_box
from fieldmark.data.augment.settings import Augment
from fieldmark.data.augment.view import augment, resized, view_rng
from fieldmark.runtime import image
from fieldmark.runtime.errors import ImageError
from fieldmark.runtime.machine import cores, memory_bytes
from fieldmark.runtime.preprocess import Preprocess
from fieldmark.runtime.stream import ordered_map

#: Share of the free memory that decoded photos may fill.
SHARE = 1 / 3
#: Photos that one thread prepares at a time: below, handing out costs more than it gains.
CHUNK = 4

Step = tuple[np.ndarray, int | None]


class Photos:
    """Decoded photos by row number, kept in memory as far as they fit. Any number of threads may read.

    paths: N files. content: their content hashes (`image.content_hash`); those not given (None, "") are taken
    from the bytes when a photo is first read. min_side: JPEGs are decoded at reduced scale as long as both
    sides keep that many pixels; give ``preprocess.min_side`` of the model, so that training sees the pixels
    that the predictor will see. cache_bytes: limit of the decoded photos, 3 bytes a pixel (default: a third
    of the memory that is free now; 0: none is kept). boxes: [N, 4] of the thing in each photo, left, top, right and
    bottom as shares of its sides; NaN: not known.

    What came first stays: an epoch reads every photo once, so putting out the oldest would gain nothing.
    """

    def __init__(
        self,
        paths: Sequence[str],
        content: Sequence[str] | None = None,
        *,
        min_side: int | None = None,
        cache_bytes: int | None = None,
        boxes: np.ndarray | None = None,
    ):
        if content is not None and len(content) != len(paths):
            raise ValueError(f"{len(paths)} paths and {len(content)} content hashes do not belong together")
        self.paths = list(paths)
        self.content = list(content) if content is not None else [""] * len(self.paths)
        self.min_side, self.boxes = min_side, boxes
        self._sizes: dict[int, tuple[int, int]] = {}
        self.cache_bytes = int(memory_bytes() * SHARE) if cache_bytes is None else cache_bytes
        #: Row -> why the photo cannot be used. Those are not read again.
        self.errors: dict[int, str] = {}
        self._kept: dict[int, np.ndarray] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def kept(self) -> tuple[int, int]:
        """Photos in memory, and their bytes."""
        return len(self._kept), self._bytes

    def load(self, row: int) -> Image.Image:
        """The photo, upright, RGB. Raises ImageError (path and reason) where it cannot be read."""
        known = self._kept.get(row)
        if known is not None:
            return Image.fromarray(known)
        try:
            if row in self.errors:
                raise ImageError(self.errors[row])
            data = image.read(self.paths[row])
            name = self.content[row] or image.content_hash(data)
            photo = image.decode(data, self.min_side)
        except ImageError as error:
            self.errors[row] = str(error)
            raise ImageError(f"{self.paths[row]}: {error}") from None
        self.content[row], self._sizes[row] = name, photo.size
        self._keep(row, photo)
        return photo

    def size(self, row: int) -> tuple[int, int]:
        """Width and height of a photo as it is loaded."""
        if row not in self._sizes:
            self._sizes[row] = self.load(row).size
        return self._sizes[row]

    def fill(
        self, workers: int | None = None, progress: Callable[[int], None] | None = None
    ) -> dict[int, str]:
        """Read every photo once, ahead of training; row -> reason of those that cannot be used."""

        def read(row: int) -> None:
            with contextlib.suppress(ImageError):  # it stands in self.errors
                self.load(row)

        for row, _ in enumerate(ordered_map(read, range(len(self)), workers or cores())):
            if progress and (row % 32 == 31 or row + 1 == len(self)):
                progress(row + 1)
        return dict(sorted(self.errors.items()))

    def _keep(self, row: int, photo: Image.Image) -> None:
        size = 3 * photo.width * photo.height
        with self._lock:
            if row in self._kept or self._bytes + size > self.cache_bytes:
                return
            self._bytes += size
            self._kept[row] = np.asarray(photo)


class Loader:
    """Batches of augmented photos in the order asked for, prepared ahead.

    photos; preprocess: the model's; settings: of the views. size: side S in pixels (default: that of
    ``preprocess``). workers: threads (default: cores; 0: all is done by the caller's thread when it asks).
    seed: views are a function of (seed, content, epoch) alone, whatever the batches and threads. ahead:
    batches prepared beyond the one handed out. device: where batches are handed out. A GPU is sent bytes, from
    where it copies them by itself, and normalises there: a quarter of the traffic, and nobody waits for it.
    """

    def __init__(
        self,
        photos: Photos,
        preprocess: Preprocess,
        settings: Augment | None = None,
        *,
        size: int | None = None,
        workers: int | None = None,
        seed: int = 0,
        ahead: int = 2,
        device: torch.device | str = "cpu",
    ):
        self.photos = photos
        self.preprocess = resized(preprocess, size or preprocess.size)
        self.settings = Augment() if settings is None else settings
        self.size = self.preprocess.size
        self.workers = cores() if workers is None else workers
        self.seed = seed
        self.ahead = max(0, ahead)
        self.device = torch.device(device)

    def batches(self, steps: Iterable[Step], *, raw: bool = False) -> Generator[Tensor, None, None]:
        """For each (row numbers [B], epoch) the images: float32 [B,3,S,S], channels last, normalised.

        An epoch of None gives photos as they are (`clean`). ``raw``: uint8 [B,S,S,3] on the CPU instead.

        ``steps`` is read up to ``ahead`` + 1 batches before they are handed out. Leaving early (``close()``,
        or dropping the iterator) ends the threads. The first error of a worker is raised at its place;
        ImageError names the photo.
        """
        if self.workers < 1:
            for rows, epoch in steps:
                pixels = self._empty(len(rows))
                self._fill(pixels.numpy(), np.asarray(rows), epoch)
                yield self._finish(pixels, raw)
            return
        pending: deque[tuple[Tensor, list[Future[None]]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="fieldmark-loader")
        try:
            for rows, epoch in steps:
                pending.append(self._submit(pool, np.asarray(rows), epoch, raw))
                if len(pending) > self.ahead:
                    yield self._finish(_whole(*pending.popleft()), raw)
            while pending:
                yield self._finish(_whole(*pending.popleft()), raw)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def clean(self, rows: np.ndarray) -> Tensor:
        """Photos as they are: exactly ``preprocess(photo)``, float32 [B,3,S,S], channels last."""
        (batch,) = self.batches([(rows, None)])
        return batch

    def boxes(self, rows: np.ndarray, epoch: int) -> np.ndarray | None:
        """Where the photos' boxes lie in their views of that epoch (`view_box`): float32 [n, 4]; None without any."""
        known = self.photos.boxes
        if known is None:
            return None
        return np.stack(
            [
                view_box(
                    self.photos.size(row),
                    self.preprocess,
                    view_rng(self.seed, self.photos.content[row], epoch),
                    self.settings,
                    known[row],
                )
                for row in rows.tolist()
            ]
        )

    def _empty(self, count: int) -> Tensor:
        shape = (count, self.size, self.size, 3)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")

    def _submit(
        self, pool: ThreadPoolExecutor, rows: np.ndarray, epoch: int | None, raw: bool
    ) -> tuple[Tensor, list[Future[None]]]:
        pixels = self._empty(len(rows))
        array = pixels.numpy()
        starts = range(0, len(rows), CHUNK)
        return pixels, [
            pool.submit(self._fill, array[at : at + CHUNK], rows[at : at + CHUNK], epoch) for at in starts
        ]

    def _fill(self, out: np.ndarray, rows: np.ndarray, epoch: int | None) -> None:
        """Write the views of ``rows`` [n] into ``out`` [n,S,S,3]."""
        for place, row in enumerate(rows.tolist()):
            photo = self.photos.load(row)
            if epoch is None:
                out[place] = self.preprocess.pixels(photo)
            else:
                rng = view_rng(self.seed, self.photos.content[row], epoch)
                out[place] = augment(photo, self.preprocess, rng, self.settings)

    def _finish(self, pixels: Tensor, raw: bool) -> Tensor:
        if raw:
            return pixels
        return normalise(pixels.to(self.device, non_blocking=True), self.preprocess)


def normalise(pixels: Tensor, preprocess: Preprocess, out: Tensor | None = None) -> Tensor:
    """uint8 [B,H,W,3] on any device -> float32 [B,3,H,W], channels last: `Preprocess.normalise`, bit for bit.

    ``out``: float32 [B,H,W,3], contiguous, to write into.
    """
    out = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device) if out is None else out
    gain, shift = _constants(preprocess, pixels.shape[2], pixels.device)
    # A row of the picture at a time: three numbers at a time would be many times slower.
    rows = out.view(pixels.shape[0] * pixels.shape[1], 3 * pixels.shape[2])
    rows.copy_(pixels.reshape(rows.shape)).mul_(gain).sub_(shift)
    return out.permute(0, 3, 1, 2)


@lru_cache(maxsize=32)
def _constants(preprocess: Preprocess, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """gain and shift [3 W] of a row of pixels, rounded as `Preprocess.normalise` rounds them."""
    std = np.asarray(preprocess.std, np.float64)
    gain = (1 / (255 * std)).astype(np.float32)
    shift = (np.asarray(preprocess.mean) / std).astype(np.float32)
    gains, shifts = (torch.from_numpy(np.tile(v, width)).to(device) for v in (gain, shift))
    return gains, shifts


def _whole(pixels: Tensor, work: list[Future[None]]) -> Tensor:
    """A batch once all of it is there."""
    for part in work:
        part.result()
    return pixels
