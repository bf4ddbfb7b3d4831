"""IDX, the format of MNIST and of the sets that took its place: a header with the shape, then the bytes.

http://yann.lecun.com/exdb/mnist/, "File formats". Values are unsigned bytes here, as in all these sets.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fieldmark.data.zoo.download import Remote, fetch
from fieldmark.data.zoo.pictures import write_pictures
from fieldmark.runtime.errors import FieldmarkError, UsageError

_UNSIGNED_BYTE = 8


@dataclass(frozen=True)
class IdxFile:
    """A file of a set: its shape, the SHA-256 of its content and, as published with gzip, size and SHA-256."""

    name: str
    shape: tuple[int, ...]
    sha256: str
    packed_bytes: int
    packed_sha256: str

    @property
    def bytes(self) -> int:
        """Size of the content: four bytes and four a dimension, then one a value."""
        return 4 + 4 * len(self.shape) + int(np.prod(self.shape))


def parse(content: bytes, name: str = "the file") -> np.ndarray:
    """IDX -> an array of unsigned bytes in the shape of its header.

    Raises FieldmarkError for another format, other values, or a size that is not the header's.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTE or not content[3]:
        raise FieldmarkError(f"{name} is not an IDX file of unsigned bytes")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise FieldmarkError(f"{name} ends within its header")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    wanted = 1
    for side in shape:  # Python's whole numbers do not overflow
        wanted *= side
    if len(content) - start != wanted:
        raise FieldmarkError(f"{name} has {len(content) - start} values, its header says {wanted}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read(
    file: IdxFile,
    addresses: Sequence[str],
    source: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The file's array, from the folder ``source`` (plain or .gz) or fetched from one of ``addresses``.

    Its content is checked by SHA-256 before it is parsed. No more is unpacked than the file may hold.
    Raises UsageError where the folder lacks it, FieldmarkError where it is another file.
    """
    if source:
        path = _local(Path(source).expanduser(), file.name)
    else:
        packed = f"{file.name}.gz"
        remote = Remote(packed, tuple(a + packed for a in addresses), file.packed_bytes, file.packed_sha256)
        path = fetch(remote, progress)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            content = handle.read(file.bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FieldmarkError(f"cannot read {path}: {error}") from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise FieldmarkError(f"{path} is not the published {file.name} (SHA-256 differs)")
    array = parse(content, str(path))
    if array.shape != file.shape:
        raise FieldmarkError(f"{path} has the shape {array.shape}, not {file.shape}")
    return array


def write(
    files: Mapping[str, tuple[IdxFile, IdxFile]],
    addresses: Sequence[str],
    names: Sequence[str],
    root: str | Path,
    *,
    source: str = "",
    per_class: int = 0,
    progress: Callable[[int, int], None] | None = None,
    download: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a set as PNG files with its published split into ``root`` (see `write_pictures`).

    files: of the pictures and of the labels, by split. source: a folder that holds the files (plain or .gz),
    instead of fetching them. per_class: only the first so many of each class in each split.
    ``download(done, total)`` counts bytes. Raises FieldmarkError where the files cannot be had or are not the
    published ones.
    """
    parts = {
        split: (read(images, addresses, source, download), read(labels, addresses, source, download))
        for split, (images, labels) in files.items()
    }
    return write_pictures(root, parts, names, per_class=per_class, progress=progress)


def _local(folder: Path, name: str) -> Path:
    """The file in a folder of one's own, also as some packages spell it (train-images.idx3-ubyte)."""
    for stem in (name, name.replace("-idx", ".idx")):
        for path in (folder / stem, folder / f"{stem}.gz"):
            if path.is_file():
                return path
    raise UsageError(f"no {name} or {name}.gz in {folder}")
