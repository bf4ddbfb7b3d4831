from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fieldmark.runtime import cache
from fieldmark.runtime.errors import FieldmarkError, UsageError


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FIELDMARK_CACHE_SIZE", raising=False)
    return tmp_path / "cache"


def put(name: str, entry: str, size: int, age: float = 0) -> Path:
    path = cache.directory(name) / entry
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_the_default_root_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIELDMARK_CACHE")
    assert cache.cache_root().name.lower() == "fieldmark" or "fieldmark" in cache.cache_root().parts


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 10**10), ("123", 123), ("500MB", 5 * 10**8), ("1.5 gb", 15 * 10**8), ("2T", 2 * 10**12)],
)
def test_cap(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDMARK_CACHE_SIZE", text)
    assert cache.cap() == size


def test_a_wrong_cap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDMARK_CACHE_SIZE", "lots")
    with pytest.raises(UsageError, match="lots"):
        cache.cap()


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "/x"])
def test_a_cache_stays_below_the_root(name: str) -> None:
    with pytest.raises(UsageError):
        cache.directory(name)


def test_a_root_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "file"))
    with pytest.raises(FieldmarkError, match="FIELDMARK_CACHE"):
        cache.directory("weights")


def test_prune_takes_the_least_recently_used() -> None:
    old, middle, new = (put("features", str(age), 40, age) for age in (300, 200, 100))
    cache.touch(old)
    assert cache.prune(100) == 40
    assert old.exists() and new.exists() and not middle.exists()
    assert cache.prune(100) == 0


def test_prune_spares_what_this_process_works_with() -> None:
    """A backbone's weights are older than the features that come of them, and are read again at the end."""
    weights, (first, last) = (
        put("weights", "w", 60, 50),
        (put("features", f"{age}", 60, age) for age in (9, 8)),
    )
    cache.touch(weights)
    for age, entry in ((-10, first), (-20, last)):
        cache.touch(entry, spare=False)
        os.utime(entry, (time.time() - age,) * 2)
    assert cache.prune(140) == 60
    assert weights.exists() and last.exists() and not first.exists()


def test_prune_spans_all_caches_and_reads_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, features = put("weights", "w", 60, 50), put("features", "f", 60, 10)
    monkeypatch.setenv("FIELDMARK_CACHE_SIZE", "100")
    assert cache.prune() == 60
    assert features.exists() and not weights.exists()


def test_prune_sweeps_what_killed_processes_left() -> None:
    stale, fresh = put("features", ".tmp-a-x.npy", 10, 2 * 86400), put("features", ".tmp-b-x.npy", 10)
    assert cache.prune() == 10
    assert fresh.exists() and not stale.exists()


def test_usage_and_clear() -> None:
    put("weights", "w", 7), put("features", "deep", 5)
    (cache.directory("features") / "aa").mkdir()
    put("features", "aa/b", 5)
    assert cache.usage() == {"features": cache.Usage(2, 10), "weights": cache.Usage(1, 7)}
    assert cache.clear("features") == 10
    assert list(cache.usage()) == ["weights"]
    with pytest.raises(UsageError, match="weights"):
        cache.clear("features")
    assert cache.clear() == 7
    assert cache.usage() == {}


def test_a_folder_of_others_is_never_touched(root: Path) -> None:
    (root / "holiday").mkdir(parents=True)
    (root / "holiday/photo.jpg").write_bytes(b"x" * 1000)
    put("features", "f", 10)
    cache.prune(0)
    cache.clear()
    assert (root / "holiday/photo.jpg").exists()
    with pytest.raises(UsageError):
        cache.clear("holiday")


@pytest.mark.parametrize("sync", [True, False])
def test_atomic_write(tmp_path: Path, sync: bool) -> None:
    target = tmp_path / "a.npy"
    target.write_text("before")
    with cache.atomic_write(target, sync=sync) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".npy"
        temporary.write_text("after")
        assert target.read_text() == "before"
    assert target.read_text() == "after"
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_atomic_write_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("before")
    with pytest.raises(RuntimeError), cache.atomic_write(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


WRITER = """
import sys
from fieldmark.runtime import cache
folder = cache.directory("features")
for turn in range(60):
    for entry in range(8):
        path = folder / f"{entry}.bin"
        with cache.atomic_write(path, sync=False) as temporary:
            temporary.write_bytes(bytes([turn]) * 5000)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # the other process pruned: a miss
        assert len(data) == 5000 and len(set(data)) == 1, "torn"
    cache.prune(20_000)
    cache.usage()
"""


def test_two_processes_at_once() -> None:
    both = [subprocess.Popen([sys.executable, "-c", WRITER], stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    assert cache.usage()["features"].bytes <= 20_000


@pytest.mark.parametrize("named", [True, False])
def test_an_error_of_the_disk_says_where(tmp_path: Path, named: bool) -> None:
    with pytest.raises(OSError) as caught, cache.atomic_write(tmp_path / "table.csv") as temporary:
        raise OSError(28, "No space left on device", *([str(temporary)] if named else []))
    assert caught.value.filename == str(tmp_path / "table.csv")
