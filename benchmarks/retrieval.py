"""Do embeddings find photos of classes that were never trained on?  ``python benchmarks/retrieval.py``

Half of the classes of cub100, drawn by the seed, are trained with all their photos (``fieldmark train``), as is usual
in metric learning; every photo of the other half is then searched among the others of that half (``fieldmark
similar``): Recall@1, mAP@R, and same-or-different over all pairs (ROC area, TAR at FAR). Beside it the backbone's
plain pooled embedding, which knows no class, at 224 and 320 px. Three seeds. About 8 minutes on two cores.
"""

from __future__ import annotations

import os
import statistics
import sys
from typing import Any

import common
import numpy as np

from fieldmark.runtime.catalog import Catalog

SET = "cub100"
OURS = "fieldmark"
#: Sides in pixels of the plain embeddings.
SIZES = (224, 320)


def ours(learned: Catalog, searched: Catalog, results: common.Results) -> dict[str, Any]:
    """Train on one half, search in the other."""
    folder = results.work / "retrieval"
    words = ["--out", folder / "run", "--overwrite", "--no-report"]
    cache = results.work / "cache"
    common.fieldmark("train", common.table(learned, folder / "learned.csv"), *words, cache=cache)
    table = common.table(searched, folder / "searched.csv")
    return common.fieldmark("similar", folder / "run" / "model", "--in", table, cache=cache).answer


def plain(searched: Catalog, size: int) -> dict[str, Any]:
    """The pooled embedding of the same backbone."""
    from fieldmark.evaluate.retrieval import retrieval_report
    from fieldmark.methods.descriptor import descriptor_graph
    from fieldmark.nn.weights import DEFAULT_BACKBONE
    from fieldmark.train.features import Describer

    graph = descriptor_graph(DEFAULT_BACKBONE, "plain", size=size)
    described = Describer(graph)(searched.paths)
    good = [row for row in range(len(searched)) if row not in described.errors]
    labels = np.asarray(searched.labels, object)[good].astype(str)
    return retrieval_report(described.descriptors[good], labels).to_dict()


def numbers(report: dict[str, Any]) -> dict[str, float]:
    """What is asked of a report."""
    tar = {f"TAR at FAR {far}": value for far, value in report["tar_at_far"].items()}
    recall = {f"Recall@{k}": value for k, value in report["recall_at"].items()}
    return {**recall, "mAP@R": report["map_at_r"], "ROC area": report["roc_auc"], **tar}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    results = common.Results(__file__, chosen)
    os.environ["FIELDMARK_CACHE"] = str(results.work / "cache")
    if results.done(f"{OURS}, Recall@1", SET, "all"):
        return
    photos = common.catalog(SET, chosen.limit)
    classes = photos.classes
    found: dict[str, list[dict[str, float]]] = {OURS: [], **{f"plain, {size} px": [] for size in SIZES}}
    searched = photos
    for seed in range(chosen.seeds):
        half = set(np.random.default_rng(seed).permutation(classes)[: len(classes) // 2].tolist())
        learned, searched = common.of_classes(photos, half), common.of_classes(photos, set(classes) - half)
        everything = learned.with_column("split", ["train"] * len(learned))
        found[OURS].append(numbers(ours(everything, searched, results)))
        for size in SIZES:
            found[f"plain, {size} px"].append(numbers(plain(searched, size)))
        print(f"seed {seed}: { ({name: of[-1] for name, of in found.items()}) }", file=sys.stderr)
    for name, of in found.items():
        for what in of[0]:
            values = [one[what] for one in of]
            results.add(
                *(f"{name}, {what}", statistics.mean(values), "share"),
                set=SET,
                seed="all",
                low=min(values),
                high=max(values),
                spread=statistics.stdev(values) if len(values) > 1 else None,
                n=len(searched),
                note=f"mean, least and most of {len(values)} seeds",
            )


if __name__ == "__main__":
    main()
