"""Which method is worth its time?  ``python benchmarks/methods.py``, ``--final`` for the best, ``--tables``

The comparison of `fieldmark bench methods` on our sets: the same EfficientNet-Lite0, size, photos, seeds and time
for every method, test photos judged once, every choice made by held-out photos of train. First all methods are
screened: one seed, 60 seconds, on photos whose marks are small (birds with parts, and rendered look-alikes at 448 px,
whose marks are known). ``--final`` takes the eight best of those and plain: three seeds, four sets, 90 seconds on the
small ones and 3 minutes on those of 3000 photos, of which 60 seconds would be less than an epoch.
``--instant`` fits the heads of methods that a frozen backbone can serve: three seeds, four sets, half an hour.
Where each looks is drawn with its model of the look-alikes; ``--pictures`` draws those that are missing. ``--plot``
draws the comparison: ``uv run --with matplotlib python benchmarks/methods.py --plot``.

A row is written as it comes to results/methods.csv and is not measured again; remove it there to have it measured anew.
``--tables`` only writes fieldmark/methods/measured.csv, which `fieldmark methods` and docs/methods.py read. Screening
takes about an hour and a half on two cores, the final about four.
"""

from __future__ import annotations

import csv
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

from fieldmark.evaluate import bench
from fieldmark.evaluate.bench_summary import summary
from fieldmark.methods.measured import TABLE, Measured
from fieldmark.runtime.bundle import Bundle
from fieldmark.train.recipe import INSTANT

ROWS = common.HERE / "results" / "methods.csv"
PICTURES = common.ROOT / "docs" / "pictures" / "methods"
SCREEN, SCREENED = ("look-alikes", "cub10_parts"), "60s"
#: The sets of the final, and the time of each.
FINAL = {"look-alikes": "90s", "cub10_parts": "90s", "grocery_store": "3m", "cub100": "3m"}
#: The time of other sets, and what a model learns for whose picture alone is wanted.
LONG, DRAWN = "3m", "5m"
SEEDS, BEST = 3, 8
#: The rendered set: 12 species of 4 genera, 50 photos each.
LOOKALIKES: dict[str, Any] = {"n_species": 12, "per_species": 50, "size": 448, "unknown": 0, "seed": 0}
#: Photos in a picture of where a method looks.
SHOWN = 5


def source(name: str, work: Path) -> Path:
    """The photos of a set; look-alikes are rendered."""
    if name != "look-alikes":
        return common.photos(name)
    folder = work / "look-alikes-448"
    if not (folder / "metadata.csv").is_file():
        from fieldmark.data.lookalikes.dataset import write

        write(folder, **LOOKALIKES)
    return folder


def fitting(path: Path, budget: str = "") -> list[str]:
    """Methods that these photos and the budget can serve."""
    from fieldmark.runtime.catalog import Catalog
    from fieldmark.train.choose import fitting as fit

    return fit(Catalog.read(path), budget == INSTANT)


def measure(sets: list[str], names: list[str] | None, seeds: int, budget: str, work: Path) -> None:
    """All that is not there yet, set by set."""
    for name in sets:
        path = source(name, work)
        known = fitting(path, budget)
        chosen = [one for one in names or known if one in known]
        cells = bench.cells(name, chosen, range(seeds), budget, "", "", "")
        draw = drawing(path) if name == SCREEN[0] and budget != INSTANT else None
        print(f"{name}: {len(cells)} trainings of {budget}", file=sys.stderr, flush=True)
        common.quiet()
        with tempfile.TemporaryDirectory(dir=work) as folder:
            version = common.commit("benchmarks/methods.py")

            def see(cell: bench.Cell, bundle: Bundle, draw: Any = draw) -> None:
                if draw is None or cell.seed or " " in cell.method:
                    return
                try:
                    draw(cell.method, bundle)
                except Exception as error:  # the row is worth more than its picture
                    print(f"  no picture of {cell.method}: {error}", file=sys.stderr, flush=True)

            for row in bench.run(str(path), cells, ROWS, Path(folder), lambda *_: None, version, see):
                told = row.get("error") or f"{row['top1']:.3f} in {row['seconds']:.0f} s"
                print(f"  {name} · {row['method']}, seed {row['seed']}: {told}", file=sys.stderr, flush=True)
        tables()


def usual() -> list[dict[str, str]]:
    """Those of the usual backbone, size and flags: others may stand in the table, and are not compared with them."""
    return [row for row in bench.read(ROWS) if not (row["backbone"] or row["size"] or row["flags"])]


def best() -> list[str]:
    """The eight methods with the most right answers to held-out photos of train, a mean over the screened sets that
    they can serve; one that could not be trained on a set has none right there."""
    found: dict[str, dict[str, float]] = {}
    for row in usual():
        screened = row["budget"] == SCREENED and row["set"] in SCREEN
        if screened and " " not in row["method"] and row["method"] != bench.YARDSTICK:
            found.setdefault(row["method"], {})[row["set"]] = float(row["held_out_top1"] or 0)
    return sorted(found, key=lambda name: -statistics.mean(found[name].values()))[:BEST]


def tables() -> None:
    """measured.csv: a line for each method, set and budget; without numbers where nothing was trained in the time."""
    lines = sorted(summary(usual()), key=lambda line: _length(line["budget"]))
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, Measured._fields, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for line in lines:
            table.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in line.items()})


def plot(target: Path) -> None:
    """Points above plain, of what was measured longest on each set; beside each bar what an answer costs."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fieldmark"  # the same rows give the same file
    from matplotlib import pyplot

    from fieldmark.methods.measured import measured

    rows = [row for row in measured() if row.delta is not None and " " not in row.method]
    sets = list(dict.fromkeys(row.set for row in rows))
    longest = {name: max((row.budget for row in rows if row.set == name), key=_length) for name in sets}
    points = {(row.set, row.method): row for row in rows if row.budget == longest[row.set]}
    mean = {
        name: statistics.mean(
            row.delta for (_, other), row in points.items() if other == name and row.delta is not None
        )
        for name in {name for _, name in points}
    }
    names = sorted(mean, key=lambda name: (mean[name], name))
    figure, axes = pyplot.subplots(
        1, len(sets), figsize=(2.2 + 2.8 * len(sets), 0.8 + 0.24 * len(names)), squeeze=False, sharey=True
    )
    for name, axis in zip(sets, axes[0], strict=True):
        for place, method in enumerate(names):
            if (row := points.get((name, method))) is not None and row.delta is not None:
                axis.barh(place, row.delta, color="tab:green" if row.delta > 0 else "tab:grey", height=0.7)
                cost = "" if row.answer is None else f"x{row.answer:.1f}"
                axis.annotate(
                    cost, (max(row.delta, 0), place), xytext=(3, -3), textcoords="offset points", fontsize=7
                )
        axis.set_xscale("symlog", linthresh=3)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlim(right=20)
        ticks = [-100, -30, -10, -3, 0, 3, 10]
        axis.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=7)
        axis.set_title(f"{name}, {longest[name]}", fontsize=9)
        axis.set_xlabel("points of top-1 above plain; xN: cost of an answer", fontsize=7)
    axes[0][0].set_yticks(range(len(names)), names, fontsize=8)
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


def _length(budget: str) -> float:
    from fieldmark.train.recipe import seconds

    return 0.0 if budget == INSTANT else seconds(budget)


def pictures(names: list[str] | None, work: Path) -> None:
    """Train those on the look-alikes that have no picture, and draw it."""
    path = source("look-alikes", work)
    draw = drawing(path)
    for name in names or fitting(path):
        if not (PICTURES / f"{name}.jpg").is_file():
            out = work / "picture" / name
            words = ["train", path, "--out", out, "--method", name, "--budget", DRAWN, "--no-floor"]
            common.fieldmark(*words, "--no-report", "--overwrite", cache=work / "cache")
            draw(name, Bundle(out / "model"))


def drawing(path: Path) -> Callable[[str, Bundle], None]:
    """What draws where a method's model looks in some test photos of the look-alikes."""
    import numpy as np

    from fieldmark.data.boxes import boxes, shares
    from fieldmark.explain.attention_picture import attention_picture
    from fieldmark.methods.base import Method
    from fieldmark.methods.restore import restore
    from fieldmark.runtime import image
    from fieldmark.runtime.catalog import Catalog

    tested = Catalog.read(path).of_split("test")
    rows = np.linspace(0, len(tested) - 1, SHOWN).round().astype(int)
    photos = [image.load(tested.paths[row]) for row in rows]
    found = boxes(tested, "mark")
    assert found is not None
    marks = shares(found[rows], np.array([photo.size for photo in photos]))

    def draw(name: str, bundle: Bundle) -> None:
        method, target = restore(bundle), PICTURES / f"{name}.jpg"
        if isinstance(method, Method):
            PICTURES.mkdir(parents=True, exist_ok=True)
            drawn = attention_picture(method, bundle.section.preprocess, photos, marks)
            drawn.save(target, quality=82, optimize=True)
            print(f"  {target.name}: {target.stat().st_size // 1000} kB", file=sys.stderr, flush=True)

    return draw


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--methods", nargs="+", metavar="METHOD")
    parser.add_argument("--sets", nargs="+", metavar="SET")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many  [default: 3; 1 for the screening]")
    for flag in ("instant", "final", "tables", "pictures", "plot"):
        parser.add_argument(f"--{flag}", action="store_true")
    chosen = parser.parse_args()
    work: Path = chosen.work or Path(tempfile.gettempdir()) / "fieldmark-benchmarks"
    work.mkdir(parents=True, exist_ok=True)
    if chosen.tables:
        tables()
    elif chosen.plot:
        plot(PICTURES / "comparison.svg")
    elif chosen.pictures:
        pictures(chosen.methods, work)
    elif chosen.instant:
        measure(chosen.sets or [*FINAL], chosen.methods, chosen.seeds or SEEDS, INSTANT, work)
    elif chosen.final:
        for name in chosen.sets or FINAL:
            measure([name], chosen.methods or best(), chosen.seeds or SEEDS, FINAL.get(name, LONG), work)
    else:
        measure(chosen.sets or [*SCREEN], chosen.methods, chosen.seeds or 1, SCREENED, work)


if __name__ == "__main__":
    main()
