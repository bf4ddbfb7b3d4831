"""Methods compared fairly: the same photos, backbone, resolution, time budget and seeds, one process each.

Nothing but the method differs. Each is judged as it is (no model takes another's place), on the test photos of
the source, once; all that was chosen on the way was chosen by held-out photos of train. Rows are written as they
come, and a row that is there is not measured again, unless it tells of nothing but an error.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import fieldmark
from fieldmark import methods
from fieldmark.runtime.bundle import GRAPH, Bundle
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.machine import cores, processor
from fieldmark.runtime.metrics import wilson
from fieldmark.train.recipe import INSTANT

COLUMNS = (
    *("set", "method", "seed", "budget", "backbone", "size", "flags"),
    *(
        "top1",
        "low",
        "high",
        "classes",
        "n_train",
        "n_test",
        "held_out_top1",
        "instant_top1",
        "seconds",
        "epochs",
        "views",
        "photos_per_second",
    ),
    *("answer_ms", "model_mb", "mark_hit", "mark_inside", "mark_area", "error"),
    *("command", "date", "machine", "version", "photos"),
)
#: What a row is found by.
KEY = ("set", "method", "seed", "budget", "backbone", "size", "flags")
#: What rows that may stand beside each other share.
ALIKE = tuple(name for name in KEY if name not in ("method", "seed"))
#: Passes over one picture that an answer is timed by, of which the median counts.
TIMED = 15
#: The yardstick, and how it learns beside a method that learned from new views of the photos: as that one did.
YARDSTICK, PIXELS = "plain", "plain (new views)"


@dataclass(frozen=True)
class Cell:
    """One training: what it is of, and the flags of `fieldmark train` that make it."""

    set: str
    method: str
    seed: int
    budget: str
    backbone: str
    size: str
    flags: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        return _key(asdict(self))

    @property
    def words(self) -> list[str]:
        words = ["--method", self.method.partition(" ")[0], "--seed", str(self.seed)]
        words += ["--mode", INSTANT] if self.budget == INSTANT else ["--budget", self.budget]
        words += ["--backbone", self.backbone] if self.backbone else []
        words += ["--size", self.size] if self.size else []
        words += ["--views", "new"] if self.method == PIXELS else []
        return [*words, *self.flags.split()]


def cells(
    set: str, names: Sequence[str], seeds: Sequence[int], budget: str, backbone: str, size: str, flags: str
) -> list[Cell]:
    """All trainings of a comparison, seed by seed, the yardstick first."""
    wanted = [YARDSTICK, *(card.name for card in map(methods.card, names) if card.name != YARDSTICK)]
    return [Cell(set, name, seed, budget, backbone, size, flags) for seed in seeds for name in wanted]


def read(table: Path) -> list[dict[str, str]]:
    """The rows of a comparison; none where it was not begun. Raises FieldmarkError for another table."""
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames and not set(KEY) <= set(rows.fieldnames):
            raise FieldmarkError(f"{table} is another table than this command writes: choose another --out")
        return list(rows)


def fingerprint(catalog: Catalog) -> str:
    """A short hash of the photos' places (below the source), labels and splits: a change makes old rows stale."""
    root = str(catalog.root or "")
    places = [os.path.relpath(path, root) if root else path for path in catalog.paths]
    lines = sorted(map(repr, zip(places, catalog.labels, catalog.splits, strict=True)))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def alike(rows: Sequence[dict[str, str]], cell: Cell, photos: str) -> list[dict[str, str]]:
    """The rows that may stand beside this cell's: all is the same but method and seed, as far as a row tells."""
    return [row for row in rows if all(row[n] == getattr(cell, n) for n in ALIKE) and _of(row, photos)]


def run(
    source: str,
    wanted: Sequence[Cell],
    table: Path,
    work: Path,
    tell: Callable[[str, int, int], None],
    version: str = f"fieldmark {fieldmark.__version__}",
    see: Callable[[Cell, Bundle], None] = lambda *_: None,
) -> Iterator[dict[str, Any]]:
    """Train and judge what ``table`` has not yet, and add a row for each; where a method learned from new views and no
    yardstick of its seed did, that one comes next.

    work: for the run folders, each removed once its row is written; tell: what
    is done now, and how many are done of how many; version: of what is measured; see: is given every model before
    it is removed.
    """
    catalog = Catalog.read(source)
    photos = fingerprint(catalog)
    there: dict[tuple[str, ...], dict[str, Any]]
    there = {_key(row): row for row in read(table) if row["top1"] and _of(row, photos)}
    cells = list(wanted)
    for number, cell in enumerate(cells):  # which may grow
        if cell.key not in there:
            tell(f"{cell.method}, seed {cell.seed}", number, len(cells))
            row = {**dict(zip(KEY, cell.key, strict=True)), **measured(source, catalog, cell, work, see)}
            row |= {"date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), **origin(cell, version)}
            there[cell.key] = row = {**row, "photos": photos}
            _append(table, row)
            yield row
        plain, other = (replace(cell, method=name) for name in (YARDSTICK, PIXELS))
        served = other in cells or (plain.key in there and fresh(there[plain.key]))
        if "top1" in there[cell.key] and fresh(there[cell.key]) and not served:
            cells.insert(number + 1, other)


def origin(cell: Cell, version: str) -> dict[str, str]:
    """By which command, machine and version a row was made."""
    words = shlex.join(["fieldmark", "train", cell.set, *cell.words, *_alone(cell)])
    machine = f"{cores()} cores; {processor()}; torch {metadata.version('torch')}"
    return {"command": words, "machine": machine, "version": version}


def _alone(cell: Cell) -> list[str]:
    """It finds nothing that another training has computed, and no model takes its place."""
    return ["--no-cache", *([] if cell.budget == INSTANT else ["--no-floor"])]


def measured(
    source: str,
    catalog: Catalog,
    cell: Cell,
    work: Path,
    see: Callable[[Cell, Bundle], None] = lambda *_: None,
) -> dict[str, Any]:
    """One training as a process of its own, and what came of it."""
    out = work / f"{cell.set}-{cell.method.replace(' ', '-')}-{cell.seed}"
    command = [sys.executable, "-m", "fieldmark", "train", source, "--out", str(out), *cell.words]
    command += [*_alone(cell), "--no-report", "--overwrite", "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"ended with status {done.returncode}"}
    told = json.loads(done.stdout.strip().splitlines()[-1])
    if cell.budget != INSTANT and told["mode"] != "finetune":
        return {"error": f"{cell.budget} is too little time for these photos: nothing was trained"}
    if told.get("epochs") == 0:
        return {"error": f"{cell.budget} is too little time for a step"}
    if not told["n_test"]:
        return {"error": "the photos have no test split to judge by"}
    notes = json.loads((out / "run.json").read_text(encoding="utf-8"))
    details = notes["chosen"]
    low, high = wilson(round(told["top1"] * told["n_test"]), told["n_test"])
    names = ("top1", "n_train", "n_test", "seconds", "epochs", "photos_per_second")
    row = {name: told.get(name) for name in names}
    row |= {
        "classes": notes["data"]["classes"],
        "low": low,
        "high": high,
        "held_out_top1": details.get("held_out_top1"),
        "instant_top1": details.get("held_out_top1_instant"),
    }
    if "plan" in details:
        row["views"] = "kept" if details["plan"]["phases"][-1]["views"] else "new"
    bundle = Bundle(out / "model")
    row |= {"answer_ms": answer_ms(bundle), "model_mb": bundle.file(GRAPH).stat().st_size / 1e6}
    row |= _marks(bundle, catalog)
    see(cell, bundle)
    shutil.rmtree(out, ignore_errors=True)
    return row


def answer_ms(bundle: Bundle) -> float:
    """Milliseconds for one picture on one core."""
    from fieldmark.runtime.engine import compile_graph

    engine = compile_graph(bundle.file(GRAPH), outputs=["logits"], workers=1)
    pixels = bundle.section.preprocess.normalise(bundle.golden()["images"][:1])
    times = []
    for _ in range(TIMED + 2):
        begun = time.perf_counter()
        engine.run(pixels, ["logits"])
        times.append(1000 * (time.perf_counter() - begun))
    return float(np.median(times[2:]))


def _marks(bundle: Bundle, catalog: Catalog) -> dict[str, Any]:
    """Where it looks, on photos whose mark is known."""
    from fieldmark.explain.pointing import pointing

    if "mark_x" not in catalog.table.column_names:
        return {}
    try:
        found = pointing(bundle, catalog.of_split("test"))
    except FieldmarkError as error:
        return {"error": str(error)}
    return {"mark_hit": found.hit, "mark_inside": found.inside, "mark_area": found.area}


def _of(row: Mapping[str, Any], photos: str) -> bool:
    """Whether a row is of these photos; older rows do not say."""
    return (row.get("photos") or photos) == photos


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEY)


def fresh(row: Mapping[str, Any]) -> bool:
    """Did it learn from new views in the end, and not from kept maps? Of an older row the method's needs tell."""
    if row.get("views"):
        return row["views"] == "new"
    return row["method"] == PIXELS or "pixels" in methods.card(row["method"]).needs


def _append(table: Path, row: dict[str, Any]) -> None:
    """Write a row, in the place of an older one of the same cell."""
    table.parent.mkdir(parents=True, exist_ok=True)
    rows = [one for one in read(table) if _key(one) != _key(row)]
    draft = table.with_suffix(".part")
    with draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        writer.writerow({name: f"{v:.5g}" if isinstance(v, float) else v for name, v in row.items()})
    draft.replace(table)
