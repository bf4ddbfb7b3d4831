from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fieldmark.runtime import machine


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def group(tmp_path: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A tree of control groups, and the file that says where in it this process stands."""
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "groups", tmp_path / "own"


def test_this_machine_has_a_core_and_memory() -> None:
    assert machine.cores() >= 1
    assert machine.memory_bytes() > 1 << 20


def test_affinity_alone(tmp_path: Path) -> None:
    assert machine.cores(tmp_path / "none", tmp_path / "none") == 16


def test_no_affinity_falls_back_to_the_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores(tmp_path / "none", tmp_path / "none") == 1


@pytest.mark.parametrize(
    ("text", "count"), [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", 16)]
)
def test_quota_of_version_2(tmp_path: Path, text: str, count: int) -> None:
    groups, own = group(tmp_path, "0::/a/b\n", {"a/b/cpu.max": text})
    assert machine.cores(groups, own) == count


def test_the_group_above_counts_too(tmp_path: Path) -> None:
    files = {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}
    assert machine.cores(*group(tmp_path, "0::/a/b\n", files)) == 3


def test_a_path_hidden_by_the_container(tmp_path: Path) -> None:
    groups, own = group(tmp_path, "0::/docker/abc\n", {"cpu.max": "400000 100000"})
    assert machine.cores(groups, own) == 4


@pytest.mark.parametrize(("quota", "count"), [("250000", 3), ("-1", 16)])
def test_quota_of_version_1(tmp_path: Path, quota: str, count: int) -> None:
    files = {"cpu,cpuacct/x/cpu.cfs_quota_us": quota, "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}
    assert machine.cores(*group(tmp_path, "4:memory:/x\n1:cpu,cpuacct:/x\n", files)) == count


def test_memory_of_version_2(tmp_path: Path) -> None:
    stat = "anon 500\ninactive_file 200\n"
    files = {"a/memory.max": "1000", "a/memory.current": "700", "a/memory.stat": stat}
    groups, own = group(tmp_path, "0::/a\n", files)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   8 kB\n")
    assert machine.memory_bytes(groups, own, tmp_path / "meminfo") == 500
    (groups / "a/memory.max").write_text("max\n")
    assert machine.memory_bytes(groups, own, tmp_path / "meminfo") == 8 * 1024


def test_memory_of_version_1_never_below_zero(tmp_path: Path) -> None:
    files = {"memory/x/memory.limit_in_bytes": "100", "memory/x/memory.usage_in_bytes": "300"}
    assert machine.memory_bytes(*group(tmp_path, "4:memory:/x\n", files)) == 0


@pytest.mark.parametrize(("started", "count"), [("2", 8), ("3", 5), ("99", 1)])
def test_processes_share_cores_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: str, count: int
) -> None:
    """Unless one works while the others wait."""
    none = tmp_path / "none"
    (tmp_path / "meminfo").write_text("MemAvailable:   99 kB\n")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", started)
    assert machine.cores(none, none) == count and machine.cores(none, none, alone=True) == 16
    assert machine.memory_bytes(none, none, tmp_path / "meminfo") == 99 * 1024 // int(started)


def test_the_age_of_this_process() -> None:
    code = (
        "import time; time.sleep(.3); from fieldmark.runtime.machine import process_seconds as age\n"
        "first = age(); time.sleep(.2); print(first, age())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = map(float, done.stdout.split())
    assert first < 30 and 0.15 < second - first < 30
    if sys.platform == "linux":
        assert first > 0.3


def test_the_age_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_text", lambda path: "")
    assert machine.process_seconds() > 0


def test_when_this_process_started() -> None:
    code = (
        "import time; time.sleep(.3); from fieldmark.runtime.machine import process_started as start\n"
        "first = start(); time.sleep(.2); print(first, start())"
    )
    before = time.time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = map(float, done.stdout.split())
    assert abs(second - first) < 0.05, "it does not move"
    assert before - 0.1 < first < time.time()
    if sys.platform == "linux":
        assert first < before + 0.3, "the start of Python counts"
