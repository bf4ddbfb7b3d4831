"""What is each augmentation worth in fine-tuning?  ``python benchmarks/augmentation.py``

``fieldmark train PHOTOS --epochs 6 --views kept``, about 90 seconds, with one augmentation changed at a time: those
that the default has are switched off, the others on. Epochs, not seconds, so that all take the same steps however
busy the machine is, and the same call gives the same bits; every epoch has a view of its own. What augmentation is
for are few photos: each seed draws up to 17 photos a class of those that are not test photos, 5 to train on, 2 held
out, and 10 that judge. The set's own test photos are not used. ``--no-floor``: what was trained is judged, not the
instant model in its place. ``difference``: points of top-1 to the default with the same seed and so the same photos,
mean over the seeds; its spread is their standard deviation. With 700 to 1000 photos that judge a set and seed, a
difference below about 2 points says little. 13 ways, two sets, two seeds: about 90 minutes on two cores.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import numpy as np
import summary

if TYPE_CHECKING:
    from fieldmark.runtime.catalog import Catalog

SETS = ("grocery_store", "cub100")
DEFAULT = "default"
#: What is tried: name -> flags. The default crops to 40% of the area or more, mirrors, and jitters colour by 0.25.
WAYS: dict[str, tuple[str, ...]] = {
    DEFAULT: (),
    "nothing": ("--crop-scale", "1", "--no-flip", "--color", "0"),
    "no crop": ("--crop-scale", "1"),
    "crop from 0.2": ("--crop-scale", "0.2"),
    "no flip": ("--no-flip",),
    "no colour": ("--color", "0"),
    "rotate 15": ("--rotate", "15"),
    "blur 0.3": ("--blur", "0.3"),
    "erase 0.25": ("--erase", "0.25"),
    "mixup 0.2": ("--mixup", "0.2"),
    "cutmix 1": ("--cutmix", "1"),
    "policy trivial": ("--policy", "trivial"),
    "policy rand": ("--policy", "rand"),
}
#: Photos of a class that train, are held out, and judge.
SHARES = {"train": 5, "val": 2, "test": 10}
#: What a row measures.
TOP1, DIFFERENCE = "top-1", "difference"


def few(photos: Catalog, seed: int) -> Catalog:
    """`SHARES` photos a class of those that are not test photos, or as many as there are in these shares."""
    rng = np.random.default_rng(seed)
    labels = np.array([str(label) for label in photos.labels])
    learned = np.array([split != "test" for split in photos.splits])
    splits = np.full(len(photos), None, object)
    most = sum(SHARES.values())
    for name in sorted(set(labels[learned])):
        rows = rng.permutation(np.flatnonzero(learned & (labels == name)))[:most]
        begin, end = 0, 0
        for split, share in SHARES.items():
            end += share
            until = max(begin + 1, len(rows) * end // most)
            splits[rows[begin:until]], begin = split, until
    chosen = np.array([split is not None for split in splits])
    return photos.with_column("split", splits.tolist()).select(chosen)


def measure(way: str, set: str, seed: int, source: Path, results: common.Results, epochs: int) -> None:
    """Train once: its top-1 on the photos that judge."""
    flags = ["--epochs", epochs, "--views", "kept", "--seed", seed, "--no-floor", "--no-report", *WAYS[way]]
    with common.cold(results.work) as folder:
        run = folder / "run"
        told = common.fieldmark("train", source, "--out", run, *flags, cache=results.work / "seen").answer
        judged = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    note = f"{told['epochs']:.1f} epochs"
    results.add(f"{way}, {TOP1}", judged["top1"], "share", set=set, seed=seed, n=judged["n"], note=note)


def compare(results: common.Results) -> None:
    """Means over the seeds, differences to the default of the same seed, and the table of the docs."""
    top1: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in results.rows():
        way, _, measured = row["what"].rpartition(", ")
        if measured == TOP1 and row["seed"] != "all" and row["machine"] == results.facts["machine"]:
            top1[row["set"], way][row["seed"]] = float(row["value"])
    table = []
    for (name, way), seeds in top1.items():
        own: dict[str, Any] = {"set": name, "seed": "all", "n": len(seeds)}
        mean, note = statistics.mean(seeds.values()), "least and most of the seeds"
        low, high = min(seeds.values()), max(seeds.values())
        results.add(f"{way}, {TOP1}", mean, "share", **own, low=low, high=high, note=note)
        line = {"set": name, "way": way, "seeds": str(len(seeds)), TOP1: f"{mean:.4g}"}
        default = top1.get((name, DEFAULT), {})
        pairs = [100 * (value - default[seed]) for seed, value in seeds.items() if seed in default]
        if way != DEFAULT and pairs:
            spread = statistics.stdev(pairs) if len(pairs) > 1 else None
            results.add(f"{way}, {DIFFERENCE}", statistics.mean(pairs), "points", **own, spread=spread)
            line[DIFFERENCE] = f"{statistics.mean(pairs):.2f}"
            line |= {} if spread is None else {"spread": f"{spread:.2f}"}
        table.append(line)
    summary.write(results.path.with_name("augmentation_table.csv"), table)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--sets", nargs="+", default=list(SETS), metavar="SET")
    parser.add_argument("--seeds", type=int, default=2, help="[default: 2]")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY")
    parser.add_argument("--epochs", type=int, default=6, help="[default: 6]")
    parser.add_argument("--compare", action="store_true", help="judge the rows that are there")
    chosen = parser.parse_args()
    results = common.Results(__file__, chosen)
    for seed in range(0 if chosen.compare else chosen.seeds):
        for name in chosen.sets:
            copy = few(common.catalog(name, chosen.limit), seed)
            source = common.table(copy, results.work / f"{name}-few-{seed}-{chosen.limit or 'all'}.csv")
            for way in chosen.ways:
                words = f"--sets {name} --seeds {chosen.seeds} --ways '{way}' --epochs {chosen.epochs}"
                words += f" --limit {chosen.limit}" if chosen.limit else ""
                results.facts["command"] = f"python benchmarks/augmentation.py {words}"
                if results.done(f"{way}, {TOP1}", name, seed):
                    continue
                measure(way, name, seed, source, results, chosen.epochs)
    results.facts["command"] = "python benchmarks/augmentation.py"
    compare(results)


if __name__ == "__main__":
    main()
