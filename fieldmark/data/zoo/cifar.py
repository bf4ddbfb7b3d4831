"""The archives of CIFAR in their *binary* form: records of label bytes and pixels, no pickle.

https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version": a record is its labels (one byte each), then
1024 bytes of red, of green and of blue, row by row, for 32 x 32 pixels.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from fieldmark.data.zoo.download import Remote, digest, fetch
from fieldmark.runtime.errors import FieldmarkError, UsageError

SIDE = 32
PIXELS = 3 * SIDE * SIDE
#: The largest file of the archives is 50,000 records of 3,074 bytes.
_MOST = 160_000_000


def archive(remote: Remote, source: str = "", progress: Callable[[int, int], None] | None = None) -> Path:
    """The archive's path: in the folder ``source`` (or ``source`` itself), else fetched. Always checked by SHA-256.

    Raises UsageError where the folder lacks it, FieldmarkError where it is another file.
    """
    if not source:
        return fetch(remote, progress)
    path = Path(source).expanduser()
    path = path / remote.name if path.is_dir() else path
    if not path.is_file():
        raise UsageError(f"no {remote.name} in {source}")
    if digest(path) != remote.sha256:
        raise FieldmarkError(f"{path} is not the published {remote.name} (SHA-256 differs)")
    return path


def members(path: Path, wanted: Collection[str]) -> dict[str, bytes]:
    """The content of ``wanted`` members (names in the archive) of a .tar.gz. Nothing is written to the disk.

    Only plain files with exactly these names are read, so links and paths that lead elsewhere do no harm.
    Raises FieldmarkError for a damaged archive and where one is missing.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                if member.isreg() and member.name in wanted and member.size <= _MOST:
                    handle = tar.extractfile(member)
                    found[member.name] = handle.read() if handle else b""
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise FieldmarkError(f"cannot read {path}: {error}") from error
    if missing := sorted(set(wanted) - set(found)):
        raise FieldmarkError(f"{path} holds no {missing[0]}")
    return found


def records(
    content: bytes, labels: int, classes: int, name: str = "the file"
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [N, 32, 32, 3] and the last of each record's ``labels`` label bytes [N].

    Raises FieldmarkError for a size that is no whole number of records, or a label of ``classes`` or more.
    """
    size = labels + PIXELS
    if not content or len(content) % size:
        raise FieldmarkError(f"{name} has {len(content)} bytes: no whole number of records of {size}")
    table = np.frombuffer(content, np.uint8).reshape(-1, size)
    last = table[:, labels - 1].astype(np.int64)
    if last.max() >= classes:
        raise FieldmarkError(f"{name} has the label {last.max()}; there are {classes} classes")
    planes = table[:, labels:].reshape(-1, 3, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), last


def names(content: bytes, classes: int, name: str = "the file") -> list[str]:
    """Class names, one a line. Raises FieldmarkError where there are not ``classes`` different ones."""
    lines = [line.strip() for line in content.decode("utf-8", "replace").splitlines() if line.strip()]
    if len(set(lines)) != classes or len(lines) != classes:
        raise FieldmarkError(f"{name} names {len(lines)} classes, not {classes}")
    return lines
