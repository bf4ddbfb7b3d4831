"""What does a class cost that is added later?  ``python benchmarks/add_class.py``

cub100: 90 classes are trained, the other 10 (drawn by the seed) are added with ``fieldmark add-class``, each from its
own training photos, one after the other; then all test photos are judged. Beside it, training on all 100 at once.
Three seeds. Nothing is chosen by these test photos. About 7 minutes on two cores.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import common
import numpy as np

from fieldmark.runtime.catalog import Catalog

SET = "cub100"


def learn(photos: Catalog, what: str, results: common.Results) -> Any:
    """Train on the train and val photos; the run folder."""
    folder = results.work / "add_class"
    learned = common.table(photos.of_split("train", "val"), folder / f"{what}.csv")
    run = folder / what
    words = ["train", learned, "--out", run, "--overwrite", "--no-report"]
    common.fieldmark(*words, cache=results.work / "cache")
    return run / "model"


def judge(model: Any, photos: Catalog, results: common.Results) -> dict[str, Any]:
    """``fieldmark evaluate`` on all test photos."""
    tested = common.table(photos.of_split("test"), results.work / "add_class" / "test.csv")
    return common.fieldmark("evaluate", model, tested, cache=results.work / "cache").answer


def recall(evaluation: dict[str, Any], classes: list[str]) -> float:
    """Mean recall of some classes."""
    return statistics.mean(evaluation["per_class"][name]["recall"] for name in classes)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--later", type=int, default=10, metavar="CLASSES", help="added later  [default: 10]")
    chosen = parser.parse_args()
    results = common.Results(__file__, chosen)
    if results.done("added later, minus all at once, mean of seeds", SET, "all"):
        return
    photos = common.catalog(SET, chosen.limit)
    classes = photos.classes
    print("all classes at once", file=sys.stderr)
    at_once = judge(learn(photos, "all", results), photos, results)
    low, high = at_once["top1_ci95"]
    own: dict[str, Any] = {"set": SET, "n": at_once["n"]}
    results.add(
        "all at once, top-1", at_once["top1"], "share", **own, low=low, high=high, note="95% interval"
    )

    differences = []
    for seed in range(chosen.seeds):
        later = sorted(np.random.default_rng(seed).choice(classes, chosen.later, replace=False).tolist())
        print(f"seed {seed}: {', '.join(later)}", file=sys.stderr)
        first = common.of_classes(photos, set(classes) - set(later))
        model = learn(first, f"seed{seed}", results)
        seconds = []
        for name in later:
            new = common.of_classes(photos, [name]).of_split("train", "val").paths
            ran = common.fieldmark("add-class", model, name, *new, cache=results.work / "cache")
            seconds.append(ran.seconds)
        found = judge(model, photos, results)
        own |= {"seed": seed, "n": found["n"]}
        low, high = found["top1_ci95"]
        results.add(
            "added later, top-1", found["top1"], "share", **own, low=low, high=high, note="95% interval"
        )
        differences.append(100 * (found["top1"] - at_once["top1"]))
        wanted = "value >= -1.5"
        results.add("added later, minus all at once", differences[-1], "points", **own, wanted=wanted)
        new_ones = {"seed": seed, "set": SET, "n": chosen.later}
        results.add("recall of those added later", recall(found, later), "share", **new_ones)
        results.add("recall of the same, all at once", recall(at_once, later), "share", **new_ones)
        results.add("add-class, whole process", statistics.median(seconds), "s", **new_ones, note="median")
    results.add(
        *("added later, minus all at once, mean of seeds", statistics.mean(differences), "points"),
        set=SET,
        seed="all",
        low=min(differences),
        high=max(differences),
        spread=statistics.stdev(differences) if len(differences) > 1 else None,
        wanted="low >= -1.5",
        n=len(differences),
        note="least and most of the seeds",
    )


if __name__ == "__main__":
    main()
