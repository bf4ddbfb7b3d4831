"""What this machine really lends us: cores and memory, by affinity and control group, not by sticker.

A container with a quota of two cores on a 64-core host says 64 to ``os.cpu_count()``; 64 threads on two
cores are slower than two. On macOS and Windows there are no control groups and the plain answers hold.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
_CPUINFO = Path("/proc/cpuinfo")
#: Taken where the system does not tell how much memory is free.
_MODEST = 2 << 30
_IMPORTED = time.monotonic()


def cores(groups: Path = _GROUPS, own: Path = _OWN, *, alone: bool = False) -> int:
    """Cores that may be used at once, at least 1: the smaller of affinity and control-group quota.

    A part of a core counts as one (a quota of 1.5 gives 2), so that no quota is left unused. Processes that torchrun
    started here share alike, but for one that works ``alone`` while the others wait.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    quotas = [math.ceil(quota) for quota in _quotas(groups, own)]
    return max(1, min([count, *quotas]) // (1 if alone else _processes()))


def processor(cpuinfo: Path = _CPUINFO) -> str:
    """The processor's name, as the system tells it."""
    lines = _text(cpuinfo).splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def memory_bytes(groups: Path = _GROUPS, own: Path = _OWN, meminfo: Path = _MEMINFO) -> int:
    """Bytes of memory that this process can still take: the smaller of what is free and what the group allows.

    File pages that the kernel would give back count as free. Processes that torchrun started here share alike.
    """
    room = [_available(meminfo)]
    for folder in _folders("memory", groups, own):
        for limit_name, usage_name, key in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, usage = _number(folder / limit_name), _number(folder / usage_name)
            if limit is not None and usage is not None:
                room.append(limit - usage + _field(folder / "memory.stat", key))
    return max(0, int(min(room))) // _processes()


def process_seconds() -> float:
    """Seconds since this process started, the start of Python included where the system tells (Linux)."""
    try:
        # After the command in brackets come the fields from the third on; the 22nd is the start in ticks.
        started = int(_text(Path("/proc/self/stat")).rpartition(")")[2].split()[19])
        uptime = float(_text(Path("/proc/uptime")).split()[0])
        return max(0.0, uptime - started / os.sysconf("SC_CLK_TCK"))
    except (IndexError, ValueError, AttributeError, OSError):
        return time.monotonic() - _IMPORTED


def process_started() -> float:
    """When this process was created, in seconds since the epoch (as ``time.time`` counts).

    Where the system does not tell: when fieldmark was first imported.
    """
    return time.time() - process_seconds()


def _processes() -> int:
    """How many torchrun started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _quotas(groups: Path, own: Path) -> Iterator[float]:
    """Quotas in cores, of this process's group and of every group above it."""
    for folder in _folders("cpu", groups, own):
        words = _text(folder / "cpu.max").split()  # version 2: "150000 100000" or "max 100000"
        if len(words) == 2 and words[0] != "max":
            yield float(words[0]) / float(words[1])
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota and period and quota > 0:  # version 1: -1 means no quota
            yield quota / period


def _folders(controller: str, groups: Path, own: Path) -> Iterator[Path]:
    """Folders of this process's groups for one controller, innermost first; only those that exist.

    Lines of /proc/self/cgroup read ``id:controllers:path``; version 2 has id 0 and no controllers.
    Inside a container the path is often not visible, then the mount's top is the group itself.
    """
    for line in _text(own).splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            tops = [groups, groups / "unified"]
        elif controller in names.split(","):
            tops = [groups / names, groups / controller]
        else:
            continue
        for top in tops:
            folder = top / path.strip().lstrip("/")
            while True:
                if folder.is_dir():
                    yield folder
                if folder == top or top not in folder.parents:
                    break
                folder = folder.parent


def _available(meminfo: Path) -> int:
    free = _field(meminfo, "MemAvailable:")
    if free:
        return free * 1024
    if sys.platform == "win32":

        class Status(ctypes.Structure):
            _fields_ = [
                ("length", ctypes.c_ulong),
                ("load", ctypes.c_ulong),
                *[(name, ctypes.c_ulonglong) for name in ("total", "free", "a", "b", "c", "d", "e")],
            ]

        status = Status(length=ctypes.sizeof(Status))
        if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            return int(status.free)
        return _MODEST
    try:  # macOS does not tell what is free: half of all is a careful guess
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return _MODEST


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:  # missing, or "max"
        return None


def _field(path: Path, key: str) -> int:
    """The number after ``key`` in a file of ``key number`` lines, 0 where there is none."""
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == key:
            return int(words[1])
    return 0
