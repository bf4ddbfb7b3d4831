"""What does help against uneven classes do?  ``python benchmarks/imbalance.py``

Of each set a long-tailed copy is made: the photos of a class, train and val together, fall off exponentially from the
largest class to the smallest, by 20 to 1 where the set has enough photos (a class keeps two, so cub100 comes to 15 to
1); the test photos stay as they are. Classes with more photos come first; ties are drawn by seed 0, and so are the
photos that stay. The copy is a table in the work folder, no photo is copied. Then ``fieldmark train --budget 3m``
with ``--imbalance`` as named, and without the instant model in its place (``--no-floor``). What counts is balanced
accuracy on the test photos (the mean over classes), and that of the rarest third of the classes; nothing is chosen by
these numbers. ``difference``: points of balanced accuracy to ``none``. About 15 minutes on two cores.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import numpy as np
import summary

if TYPE_CHECKING:
    from fieldmark.runtime.catalog import Catalog

SETS = ("cub100", "grocery_store")
#: Largest class to smallest, and photos that a class keeps at least.
RATIO, LEAST = 20, 2
NONE = "none"
BALANCED, RARE, DIFFERENCE = "balanced accuracy", "balanced accuracy of the rarest third", "difference"


def long_tailed(photos: Catalog, ratio: float = RATIO, seed: int = 0) -> Catalog:
    """The same test photos, and of the others an exponential share a class.

    The class of rank k of C keeps at most ``most * ratio ** (-k / (C - 1))`` photos, ``most`` being the largest
    class's count.
    """
    rng = np.random.default_rng(seed)
    labels = np.array([str(label) for label in photos.labels])
    learned = np.array([split != "test" for split in photos.splits])
    counts = Counter(labels[learned].tolist())
    classes = [str(name) for name in rng.permutation(sorted(counts))]
    classes.sort(key=lambda name: -counts[name])
    keep = ~learned
    for rank, name in enumerate(classes):
        wanted = round(counts[classes[0]] * ratio ** (-rank / max(1, len(classes) - 1)))
        rows = np.flatnonzero(learned & (labels == name))
        keep[rng.permutation(rows)[: max(LEAST, wanted)]] = True
    return photos.select(keep.tolist())


def rarest(counts: Counter[str]) -> list[str]:
    """The third of the classes with the fewest photos."""
    return sorted(counts, key=lambda name: (counts[name], name))[: max(1, len(counts) // 3)]


def measure(
    how: str, set: str, source: Path, counts: Counter[str], results: common.Results, budget: str
) -> None:
    """Train once: the rows; balanced accuracy comes last."""
    flags = ["--budget", budget, "--imbalance", how, "--seed", 0, "--no-report", "--no-floor"]
    with common.cold(results.work) as folder:
        run = folder / "run"
        told = common.fieldmark("train", source, "--out", run, *flags, cache=folder / "cache").answer
        judged = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    own: dict[str, Any] = {"set": set, "seed": 0, "n": judged["n"]}
    least, most = min(counts.values()), max(counts.values())
    note = f"{told['n_train']} training photos, {most} to {least} a class, {told['epochs']:.1f} epochs"
    recalls = [
        judged["per_class"][label]["recall"] for label in rarest(counts) if label in judged["per_class"]
    ]
    results.add(f"{how}, top-1", judged["top1"], "share", **own)
    results.add(f"{how}, {RARE}", statistics.mean(recalls), "share", **own)
    results.add(f"{how}, {BALANCED}", judged["balanced_accuracy"], "share", **own, note=note)


def compare(results: common.Results) -> None:
    """Differences to ``none``."""
    values = {
        (row["set"], *row["what"].split(", ")): float(row["value"])
        for row in results.rows()
        if row["machine"] == results.facts["machine"]
    }
    for (set, how, measured), value in values.items():
        before = values.get((set, NONE, BALANCED))
        if measured == BALANCED and how != NONE and before is not None:
            what, wanted = f"{how}, {DIFFERENCE}", "value >= 0" if how == "auto" else None
            results.add(what, 100 * (value - before), "points", set=set, seed=0, wanted=wanted)
    table = summary.wide(results.rows(), "way")
    summary.write(results.path.with_name("imbalance_table.csv"), table)


def main() -> None:
    from fieldmark.train.imbalance import NAMES

    parser = common.parser(__doc__)
    parser.add_argument("--sets", nargs="+", default=list(SETS), metavar="SET")
    parser.add_argument("--how", nargs="+", default=[NONE, "auto"], choices=NAMES, metavar="WAY")
    parser.add_argument("--budget", default="3m", help="of a training  [default: 3m]")
    chosen = parser.parse_args()
    results = common.Results(__file__, chosen)
    limited = f" --limit {chosen.limit}" if chosen.limit else ""
    warm = False
    for name in chosen.sets:
        copy = long_tailed(common.catalog(name, chosen.limit))
        counts = Counter(map(str, copy.of_split("train", "val").labels))
        source = common.table(copy, results.work / f"{name}-tailed-{chosen.limit or 'all'}.csv")
        for how in chosen.how:
            words = f"--sets {name} --how {how} --budget {chosen.budget}{limited}"
            results.facts["command"] = f"python benchmarks/imbalance.py {words}"
            if results.done(f"{how}, {BALANCED}", name, 0):
                continue
            if not warm:
                common.warm_up(results)
                warm = True
            print(f"{name}: {how}", file=sys.stderr, flush=True)
            measure(how, name, source, counts, results, chosen.budget)
    results.facts["command"] = "python benchmarks/imbalance.py"
    compare(results)


if __name__ == "__main__":
    main()
