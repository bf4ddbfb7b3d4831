"""Descriptors of photos, each computed once: a frozen graph over photos, with a cache on disk.

A cache entry is one photo's descriptor in half precision (at most 32 KB), named by the photo's content hash
in a folder named by all that it depends on: weights, method, scales, preprocessing, engine and precision.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from fieldmark.methods.descriptor import OUTPUT, DescriptorGraph
from fieldmark.runtime import image
from fieldmark.runtime.cache import atomic_write, directory, prune, touch
from fieldmark.runtime.engine import Engine, Precision, compile_graph
from fieldmark.runtime.errors import FieldmarkError, ImageError, UsageError
from fieldmark.runtime.machine import cores
from fieldmark.runtime.stream import ordered_map

#: Descriptors of more bytes than this are kept in a file instead of in memory.
IN_MEMORY = 1_500_000_000
#: Rows that are copied at once.
BLOCK = 1024


@dataclass(frozen=True)
class Described:
    """descriptors: [N, d] float16 (rows of unreadable photos are zero); content: [N] hashes ("" unreadable);

    errors: row -> reason; computed: photos that were not in the cache; seconds: for all of them.
    """

    descriptors: np.ndarray
    content: list[str]
    errors: dict[int, str]
    computed: int
    seconds: float


class Describer:
    """Photos -> descriptors, on all cores: of several processes one looks, and the others find it in the cache."""

    def __init__(
        self,
        graph: DescriptorGraph,
        *,
        engine: str = "auto",
        precision: Precision = "f32",
        workers: int | None = None,
        cache: bool = True,
    ):
        self.graph = graph
        self.workers = workers or cores(alone=True)
        self.engine = _engine(graph, engine, precision, self.workers)
        self.width = sum(graph.widths)
        self._folder = self._entry_folder() if cache else None
        #: Why the cache could not be written, once it could not; the work goes on without it.
        self.cache_error: str | None = None

    def _entry_folder(self) -> Path:
        depends = [
            self.graph.key,
            self.graph.preprocess.model_dump(mode="json"),
            self.engine.name,
            self.engine.precision,
        ]
        name = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:24]
        return directory("features") / name

    def __call__(self, paths: Sequence[str], progress: Callable[[int], None] | None = None) -> Described:
        """Describe photos. ``progress`` is told how many are done. Unreadable photos do not raise."""
        started = time.perf_counter()
        out = _matrix(len(paths), self.width)
        content, errors, computed = [], {}, 0
        for row, (name, vector, fresh, error) in enumerate(ordered_map(self._one, paths, self.workers)):
            content.append(name)
            if vector is None:
                errors[row] = error or "cannot be read"
            else:
                out[row] = vector
            computed += fresh
            if progress and (row % 32 == 31 or row + 1 == len(paths)):
                progress(row + 1)
        if self._folder is not None and computed:
            prune()
        return Described(out, content, errors, computed, time.perf_counter() - started)

    def _one(self, path: str) -> tuple[str, np.ndarray | None, bool, str | None]:
        name = ""
        try:
            data = image.read(path)
            name = image.content_hash(data)
            entry = self._folder / name[:2] / f"{name}.f16" if self._folder is not None else None
            if entry is not None and (known := _read(entry, self.width)) is not None:
                return name, known, False, None
            photo = image.decode(data, self.graph.preprocess.min_side)
        except ImageError as error:
            return name, None, False, str(error)
        tensor = self.graph.preprocess(photo)[None]
        vector = self.engine.run(tensor, [OUTPUT])[0][0].astype(np.float16)
        if entry is not None and self.cache_error is None:
            try:
                entry.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(entry, sync=False) as temporary:
                    temporary.write_bytes(vector.tobytes())
            except OSError as error:
                self.cache_error = f"{error.strerror or error}: {entry.parent}"
        return name, vector, True, None


def _engine(graph: DescriptorGraph, engine: str, precision: Precision, workers: int) -> Engine:
    """A compiled graph where one can be had, else PyTorch, which knows the backbone as it came only."""
    if graph.trained and engine == "torch":
        engine = "auto"
    if engine != "torch":
        try:
            return compile_graph(
                graph.path, outputs=[OUTPUT], engine=engine, precision=precision, workers=workers
            )
        except UsageError:
            raise
        except FieldmarkError:
            if engine != "auto" or graph.trained:
                raise
    from fieldmark.methods.torch_engine import TorchEngine

    return TorchEngine(graph, precision)


def _read(entry: Path, width: int) -> np.ndarray | None:
    """A cached descriptor, or None where there is none or it is not whole."""
    try:
        data = entry.read_bytes()
    except OSError:
        return None
    if len(data) != 2 * width or not any(data):  # a power cut may leave zeros
        return None
    touch(entry, spare=False)
    return np.frombuffer(data, np.float16)


def select(z: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some rows [M] of descriptors [N, d], in memory only as far as there is room."""
    out = _matrix(len(rows), z.shape[1])
    for start in range(0, len(rows), BLOCK):
        out[start : start + BLOCK] = z[rows[start : start + BLOCK]]
    return out


def beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Descriptors [N, d] and [N, e] side by side, in memory only as far as there is room."""
    out = _matrix(len(left), left.shape[1] + right.shape[1])
    for start in range(0, len(left), BLOCK):
        block = slice(start, start + BLOCK)
        out[block, : left.shape[1]] = left[block]
        out[block, left.shape[1] :] = right[block]
    return out


def _matrix(rows: int, columns: int) -> np.ndarray:
    """Zeros [rows, columns] float16, in memory or, where that is too much, in a nameless file."""
    size = rows * columns * 2
    if size <= IN_MEMORY:
        return np.zeros((rows, columns), np.float16)
    folder = directory("scratch")
    try:
        file = TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as the array)
        if reserve := getattr(os, "posix_fallocate", None):  # a full disk would kill the process later
            reserve(file.fileno(), 0, size)
        return np.memmap(file, np.float16, "w+", shape=(rows, columns))
    except OSError as error:
        raise FieldmarkError(
            f"{size / 1e9:.1f} GB are needed in {folder} ({error.strerror or error}): free some room, or name "
            "another cache folder in FIELDMARK_CACHE"
        ) from error
