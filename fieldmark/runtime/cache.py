"""All caches under one roof: found, capped, shown and cleared in one place.

``FIELDMARK_CACHE`` names the root (default: the user's cache folder), ``FIELDMARK_CACHE_SIZE`` the cap in
bytes (default 10 GB; ``500MB`` and ``20 GB`` are read too). A cache is a folder under the root, an entry is a
file. Only folders that carry our tag are counted, pruned or cleared: a root named by mistake loses nothing.

Two processes may share a cache at any time: entries appear whole (`atomic_write`) or not at all, and an entry
may vanish between two looks (the other process pruned), so readers take ``FileNotFoundError`` for a miss.
The clock of the least recently used entry is the file's modification time, which `touch` sets on a hit. A
process does not prune what it has so touched itself (weights, graphs), except photos' features: they are many.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fieldmark.runtime.errors import FieldmarkError, UsageError

DEFAULT_CAP = 10_000_000_000
#: Pruning goes a little below the cap, so that it does not run again at the next entry.
_SLACK = 0.9
_TEMPORARY = ".tmp-"
#: The tag of https://bford.info/cachedir: backup programs pass such folders over.
_TAG = "CACHEDIR.TAG"
_TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# This folder holds a cache of fieldmark.\n"
#: A temporary file this old (seconds) belongs to a process that was killed.
_ABANDONED = 24 * 3600
#: Entries that `prune` spares in this process.
_SPARED: set[str] = set()
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Usage:
    """How much one cache holds: its files and their bytes."""

    files: int
    bytes: int


def cache_root() -> Path:
    """The folder of all caches; it may not exist yet."""
    if named := os.environ.get("FIELDMARK_CACHE"):
        return Path(named).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("fieldmark", appauthor=False))


def cap() -> int:
    """Bytes that all caches together may hold."""
    text = os.environ.get("FIELDMARK_CACHE_SIZE", "").strip()
    if not text:
        return DEFAULT_CAP
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text, re.IGNORECASE)
    if not match:
        raise UsageError(f"FIELDMARK_CACHE_SIZE is {text!r}: write bytes, or a size such as 500MB or 20GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def directory(name: str) -> Path:
    """The folder of one cache (``weights``, ``features``…), made where it is missing."""
    folder = _folder(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / _TAG).is_file():
            (folder / _TAG).write_text(_TAG_TEXT, encoding="ascii")
    except OSError as error:
        raise FieldmarkError(
            f"cannot make the cache folder {folder} ({error.strerror}): "
            "name another in the environment variable FIELDMARK_CACHE"
        ) from error
    return folder


@contextlib.contextmanager
def atomic_write(path: str | Path, *, sync: bool = True) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary path beside ``path``, with the same ending.

    On leaving, the temporary file takes the place of ``path`` in one step; on an error it is removed and
    what stood at ``path`` before is untouched; an OSError names ``path``. ``sync=False`` skips the wait for the
    disk (5 ms or so): right for small entries that can be computed again, as after a power cut one may read
    back damaged.
    """
    path = Path(path)
    temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name[-80:]}")
    try:
        yield temporary
        if sync:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # a write on a full disk names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def touch(path: Path, *, spare: bool = True) -> None:
    """Note that an entry was used just now, so that it is pruned late; where ``spare``, by this process not at all,
    as it may read it again. A vanished entry is no matter."""
    with contextlib.suppress(OSError):
        os.utime(path)
    if spare:
        _SPARED.add(os.path.abspath(path))  # noqa: PTH100


def prune(limit: int | None = None) -> int:
    """Remove the least recently used entries until all caches fit ``limit`` bytes (default `cap`).

    Returns the bytes removed. Left-over temporary files of killed processes go too. Costs one look at every
    entry, so call it once at the end of a piece of work, not at every write.
    """
    limit = cap() if limit is None else limit
    removed = 0
    entries: list[tuple[float, int, str]] = []
    for folder in _caches():
        for entry, info in _files(folder):
            if not entry.name.startswith(_TEMPORARY):
                entries.append((info.st_mtime, info.st_size, entry.path))
            elif time.time() - info.st_mtime > _ABANDONED:
                removed += _remove(entry.path, info.st_size)
    total = sum(size for _, size, _ in entries)
    if total <= limit:
        return removed
    for _, size, path in sorted(entries):
        if total <= limit * _SLACK:
            break
        if os.path.abspath(path) in _SPARED:  # noqa: PTH100
            continue
        freed = _remove(path, size)
        total -= freed
        removed += freed
    return removed


def usage() -> dict[str, Usage]:
    """What each cache holds, by name."""
    answer = {}
    for folder in _caches():
        sizes = [info.st_size for _, info in _files(folder)]
        answer[folder.name] = Usage(len(sizes), sum(sizes))
    return answer


def clear(name: str | None = None) -> int:
    """Empty one cache, or all of them; returns the bytes removed."""
    folders = _caches()
    if name is not None:
        folders = [folder for folder in folders if folder == _folder(name)]
        if not folders:
            known = ", ".join(folder.name for folder in _caches()) or "none"
            raise UsageError(f"no cache is called {name!r} in {cache_root()}; there are: {known}")
    removed = 0
    for folder in folders:
        removed += sum(info.st_size for _, info in _files(folder))
        shutil.rmtree(folder, ignore_errors=True)
    return removed


def _folder(name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UsageError(f"{name!r} cannot name a cache: use letters, digits, dots, dashes")
    return cache_root() / name


def _caches() -> list[Path]:
    root = cache_root()
    return sorted(path for path in root.iterdir() if (path / _TAG).is_file()) if root.is_dir() else []


def _files(folder: Path) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """All entries below, with their state; what vanishes meanwhile is passed over."""
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                        elif entry.is_file(follow_symlinks=False) and entry.name != _TAG:
                            yield entry, entry.stat(follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue


def _remove(path: str, size: int) -> int:
    """Bytes freed: 0 where the file is open elsewhere (Windows); one that is gone already counts."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError:
        return 0
    return size
