"""What the benchmarks share: rows of results, photo sets, caches, the command as a process, the machine's state.

A row is one measured number. Rows stand in ``results/NAME.csv``; a row that the same call measured at the same
commit on the same machine is not measured again unless ``--again`` says so. Rows of a trial (``--trial``, or
``--limit``, which takes few classes) go to the work folder instead.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldmark.runtime.machine import cores, processor

if TYPE_CHECKING:
    from fieldmark.runtime.catalog import Catalog

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
#: ``low``, ``high``: 95% interval, or least and most of several runs (``note`` says which); ``spread``: standard
#: deviation of several runs; ``ratio``: to what ``note`` names; ``wanted``: conditions on the row's own columns;
#: ``load``, ``busy``: load average and share of the processors that others used when the script began.
_MEASURED = ("what", "set", "seed", "value", "unit", "low", "high", "spread", "ratio")
_JUDGED = ("wanted", "holds", "n", "note")
_ORIGIN = ("command", "date", "machine", "commit", "load", "busy")
COLUMNS = (*_MEASURED, *_JUDGED, *_ORIGIN)
#: What a row is found by.
KEY = ("what", "set", "seed", "machine")
#: Share of the processors in others' hands above which times are not to be trusted.
BUSY = 0.1


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the flags of every benchmark."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--limit", type=int, metavar="CLASSES", help="the first classes of each set only: a trial"
    )
    made.add_argument("--trial", action="store_true", help="write rows to the work folder, not to results/")
    made.add_argument("--work", type=Path, help="for models and copies  [default: in the temporary folder]")
    made.add_argument("--again", action="store_true", help="measure rows anew that this commit has already")
    return made


class Results:
    """The rows of one benchmark, written as they come."""

    def __init__(
        self, script: str, chosen: argparse.Namespace, name: str | None = None, also: Sequence[str] = ()
    ):
        """script: its file; name: of the results, where it is another; also: scripts whose code is measured, too."""
        script = Path(script).stem
        self.work: Path = chosen.work or Path(tempfile.gettempdir()) / "fieldmark-benchmarks"
        self.work.mkdir(parents=True, exist_ok=True)
        self.path = (
            self.work if chosen.limit or chosen.trial else HERE / "results"
        ) / f"{name or script}.csv"
        self.again = chosen.again
        self.facts = {
            "command": " ".join(["python", f"benchmarks/{script}.py", *_told()]),
            "machine": machine(),
            "commit": commit(*(f"benchmarks/{one}.py" for one in (script, *also))),
        }
        print(f"{script}: {self.facts['machine']}, commit {self.facts['commit']}", file=sys.stderr)
        self.state = quiet()

    def rows(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def done(self, what: str, set: str = "", seed: Any = "") -> bool:
        """Was this measured already, by the same call of the code as it is?"""
        if self.again or self.facts["commit"].endswith("+"):
            return False
        wanted = {"what": what, "set": set, "seed": str(seed), **self.facts}
        there = any(all(row[name] == value for name, value in wanted.items()) for row in self.rows())
        if there:
            print(f"  {set or what}: measured before at this commit", file=sys.stderr)
        return there

    def add(self, what: str, value: float, unit: str, **more: Any) -> None:
        """Write a row in the place of an older one with the same key. Numbers are rounded to 4 digits."""
        date = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        row: dict[str, Any] = {"what": what, "value": value, "unit": unit, "date": date, **more}
        row |= self.facts | self.state
        if row.get("wanted"):
            row["holds"] = "yes" if holds(row) else "no"
        told = {name: _text(row.get(name)) for name in COLUMNS}
        rows = self.rows()
        old = next((i for i, row in enumerate(rows) if all(row[name] == told[name] for name in KEY)), None)
        if old is None:
            rows.append(told)
        else:
            rows[old] = told
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        said = [f"{name} {told[name]}" for name in (*_MEASURED[5:], *_JUDGED) if told[name]]
        line = "; ".join([f"{told['value']} {unit}", *said])
        print(f"  {told['set'] or '-'} · {what}: {line}", file=sys.stderr, flush=True)


def holds(row: dict[str, Any]) -> bool:
    """``wanted`` reads ``value <= 60, ratio <= 2``: do all of these hold for the row?"""
    for condition in row["wanted"].split(","):
        name, sign, bound = condition.split()
        here = float(row[name])
        if not (here <= float(bound) if sign == "<=" else here >= float(bound)):
            return False
    return True


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _told() -> list[str]:
    """The flags of this call, without those that name folders of this machine or change no number."""
    words, left = [], iter(sys.argv[1:])
    for word in left:
        if word in ("--work", "--model"):
            next(left, None)
        elif word != "--again" and not word.startswith(("--work=", "--model=")):
            words.append(word)
    return words


def machine() -> str:
    """Cores, processor and versions, in a line."""
    versions = []
    for package in ("torch", "openvino"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    return "; ".join([f"{cores()} cores", processor(), f"Python {platform.python_version()}", *versions])


def commit(*scripts: str) -> str:
    """The last commit that changed the product or these scripts, with + where they were changed since."""
    paths = ["fieldmark", "pyproject.toml", "benchmarks/common.py", *scripts]
    known = _git("log", "-1", "--format=%h", "--", *paths)
    return known + ("+" if _git("status", "--porcelain", "--", *paths) else "") if known else "unknown"


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def quiet() -> dict[str, Any]:
    """Say how busy the machine is before we begin: load average (of the last minute), and a look of two seconds."""
    import psutil

    busy = psutil.cpu_percent(interval=2) / 100 * (psutil.cpu_count() or 1) / cores()
    load = psutil.getloadavg()[0]
    warning = ": NOT QUIET, times will be too long" if busy > BUSY else ""
    print(f"load average {load:.2f}, others use {busy:.0%} of the processors{warning}", file=sys.stderr)
    return {"load": round(load, 2), "busy": round(busy, 3)}


def photos(name: str) -> Path:
    """A set of real photos, under FIELDMARK_DATA (default ``../shared/data``). Ends the script without it."""
    home = Path(os.environ.get("FIELDMARK_DATA", ROOT.parent / "shared" / "data"))
    if not (home / name).is_dir():
        sys.exit(f"no photo set {name} in {home}: name the folder of the sets in FIELDMARK_DATA")
    return home / name


def catalog(name: str, limit: int | None = None) -> Catalog:
    """A set as a catalog; its first ``limit`` classes only."""
    from fieldmark.runtime.catalog import Catalog

    whole = Catalog.read(photos(name))
    return whole if limit is None else of_classes(whole, whole.classes[:limit])


def of_classes(whole: Catalog, classes: Iterable[str]) -> Catalog:
    """The photos of some classes."""
    wanted = set(classes)
    return whole.select([label in wanted for label in whole.labels])


def source(name: str, limit: int | None, folder: Path) -> Path:
    """What ``fieldmark train`` is given: the set's own folder or, for a trial, a table of some of it."""
    if limit is None:
        return photos(name)
    return table(catalog(name, limit), folder / f"{name}.csv")


def table(photos: Catalog, path: Path) -> Path:
    """Write path (absolute), label and split of photos as a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        paths = [str(Path(one).resolve()) for one in photos.paths]
        writer.writerows(zip(paths, photos.labels, photos.splits, strict=True))
    return path


@contextlib.contextmanager
def cold(work: Path) -> Iterator[Path]:
    """An empty folder for a cache and a run; gone afterwards."""
    with tempfile.TemporaryDirectory(dir=work, prefix="cold-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def environment(cache: Path, bytecode: bool = True) -> dict[str, str]:
    """As a user has it: a cache of our own, and Python keeps its bytecode; or there is none and none is kept."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    none = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": str(cache / "no-bytecode")}
    return {**own, **({} if bytecode else none), "FIELDMARK_CACHE": str(cache)}


def command() -> list[str]:
    """The installed ``fieldmark``."""
    for name in ("fieldmark", "fieldmark.exe"):
        if (script := Path(sys.executable).with_name(name)).is_file():
            return [str(script)]
    return [sys.executable, "-m", "fieldmark"]


@dataclass(frozen=True)
class Ran:
    """A process that ended well. seconds: of the whole process; answer: the JSON of its last line, if any."""

    seconds: float
    answer: dict[str, Any]


def run(words: Sequence[Any], cache: Path, json_line: bool = True, bytecode: bool = True) -> Ran:
    """Run a process to its end. Ends the script where the process fails."""
    began = time.perf_counter()
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        env=environment(cache, bytecode),
        encoding="utf-8",
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\nended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return Ran(seconds, json.loads(done.stdout.splitlines()[-1]) if json_line else {})


def fieldmark(*words: Any, cache: Path) -> Ran:
    """``fieldmark WORDS --json`` as a process."""
    return run([*command(), *words, "--json"], cache)


def trained(results: Results, name: str, limit: int | None, *flags: str) -> Path:
    """The run folder of a model for scripts that do not ask how it was trained; kept for the next script."""
    home = results.work / "models"
    kept = home / "-".join([name, str(limit or "all"), *(flag.lstrip("-") for flag in flags), commit()])
    if not (kept / "run.json").is_file() or commit().endswith("+"):
        print(f"  training on {name}", file=sys.stderr, flush=True)
        given = source(name, limit, home)
        fieldmark(
            "train", given, "--out", kept, "--overwrite", "--no-report", *flags, cache=results.work / "cache"
        )
    return kept


def warm_up(results: Results) -> None:
    """One small training that is not counted: Python writes its bytecode, programs come into memory."""
    from fieldmark.data import lookalikes

    with cold(results.work) as folder:
        lookalikes.write(folder / "photos", n_species=3, per_species=10, size=128, unknown=0)
        fieldmark("train", folder / "photos", "--out", folder / "run", cache=folder / "cache")


def bare(engine: Any, output: str, tensors: Sequence[Any], count: int) -> float:
    """Seconds that a compiled graph takes for ``count`` photos on all cores, fed with ready tensors in turn."""
    return on_all_cores(lambda place: engine.run(tensors[place % len(tensors)], [output]), count)


def on_all_cores(work: Callable[[int], Any], count: int) -> float:
    """Seconds for ``work(0) … work(count - 1)`` on one thread a core, once every thread has begun."""

    def forget(place: int) -> None:
        work(place)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(forget, range(8 * cores())))
        began = time.perf_counter()
        list(pool.map(forget, range(count)))
        return time.perf_counter() - began
