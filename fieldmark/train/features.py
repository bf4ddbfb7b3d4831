"""Descriptors of photos, each computed once: a frozen graph over photos, with a cache on disk.

A cache entry is one photo's descriptor in half precision (at most 32 KB), named by the photo's content hash
in a folder named by all that it depends on: weights, method, scales, preprocessing, engine and precision.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from fieldmark.nn.descriptor import OUTPUT, DescriptorGraph
from fieldmark.runtime import image
from fieldmark.runtime.cache import atomic_write, directory, prune, touch
from fieldmark.runtime.engine import Engine, Precision, compile_graph
from fieldmark.runtime.errors import ImageError
from fieldmark.runtime.machine import cores
from fieldmark.runtime.stream import ordered_map

#: Descriptors of more bytes than this are kept in a file instead of in memory.
IN_MEMORY = 1_500_000_000


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
    """Photos -> descriptors, on all cores."""

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
        self.workers = workers or cores()
        self.engine: Engine = compile_graph(
            graph.path, outputs=[OUTPUT], engine=engine, precision=precision, workers=self.workers
        )
        self.width = sum(graph.widths)
        self._folder = self._entry_folder() if cache else None

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
        if entry is not None:
            entry.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(entry, sync=False) as temporary:
                temporary.write_bytes(vector.tobytes())
        return name, vector, True, None


def _read(entry: Path, width: int) -> np.ndarray | None:
    """A cached descriptor, or None where there is none or it is not whole."""
    try:
        data = entry.read_bytes()
    except OSError:
        return None
    if len(data) != 2 * width:
        return None
    touch(entry)
    return np.frombuffer(data, np.float16)


def _matrix(rows: int, columns: int) -> np.ndarray:
    """Zeros [rows, columns] float16, in memory or, where that is too much, in a nameless file."""
    if rows * columns * 2 <= IN_MEMORY:
        return np.zeros((rows, columns), np.float16)
    file = TemporaryFile(dir=directory("scratch"))  # noqa: SIM115 (lives as long as the array)
    return np.memmap(file, np.float16, "w+", shape=(rows, columns))
