"""How well are things found by models that were taught only classes?  ``python benchmarks/locate.py``

Models of several methods (each trained for ``--budget``, one seed) say where the thing is; boxes of the data and masks
of the rendered look-alikes say whether that is right: CorLoc (the first box overlaps the true one by half) and mean
overlap on cub10_parts, average precision at 0.5 (mean of the classes; the class is the model's own answer) on
steel_defects, whose photos have several boxes, and overlap of masks with the beetle's on look-alikes. ``two_stage`` is
trained with and without the boxes. The threshold is the one of five that is best on photos of train.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from typing import Any

import common
import numpy as np
from PIL import Image

SETS = ("cub10_parts", "steel_defects", "look-alikes")
METHODS = ("plain", "wsdan", "two_stage", "two_stage with boxes")
THRESHOLDS = (0.1, 0.2, 0.3, 0.45, 0.6)
#: Photos of train by which the threshold is chosen.
CHOOSE = 60
LOOKALIKES: dict[str, Any] = {"n_species": 12, "per_species": 50, "size": 256, "unknown": 0, "masks": True}


def source(name: str, work: Path) -> Path:
    if name != "look-alikes":
        return common.photos(name)
    folder = work / "look-alikes-masks"
    if not (folder / "metadata.csv").is_file():
        from fieldmark.data.lookalikes.dataset import write

        write(folder, **LOOKALIKES)
    return folder


def truth(folder: Path) -> dict[str, np.ndarray]:
    """File name -> boxes [n, 4] (left, top, right, bottom) in pixels."""
    file = folder / "boxes.csv"
    found: dict[str, list[list[float]]] = {}
    with (file if file.is_file() else folder / "metadata.csv").open(newline="", encoding="utf-8") as table:
        for row in csv.DictReader(table):
            x, y, w, h = (float(row[f"box_{side}"]) for side in "xywh")
            found.setdefault(row["file_name"], []).append([x, y, x + w, y + h])
    return {name: np.array(boxes) for name, boxes in found.items()}


def without_boxes(folder: Path, target: Path) -> Path:
    """The same photos as a table without any other column."""
    from fieldmark.runtime.catalog import Catalog

    return common.table(Catalog.read(folder), target)


def judge(name: str, folder: Path, located: list[Any], labels: dict[str, str]) -> dict[str, float]:
    """The set's measures."""
    from fieldmark.evaluate.boxes import average_precision, corloc, iou, mask_iou

    known = truth(folder)
    names = [Path(one.path).relative_to(folder).as_posix() for one in located]
    boxes = [np.array([thing.box for thing in one.things]).reshape(-1, 4) for one in located]
    if name == "look-alikes":
        overlaps = []
        for file, one in zip(names, located, strict=True):
            mask = np.asarray(Image.open(folder / "masks" / Path(file).with_suffix(".png"))) > 0
            overlaps.append(mask_iou(one.mask, mask))
        return {"overlap of masks": float(np.mean(overlaps))}
    if name == "steel_defects":
        scores = [np.array([thing.score for thing in one.things]) for one in located]
        found = []
        for label in sorted(set(labels.values())):
            said = [one.label == label for one in located]
            found.append(
                average_precision(
                    [b if s else b[:0] for b, s in zip(boxes, said, strict=True)],
                    [v if s else v[:0] for v, s in zip(scores, said, strict=True)],
                    [known[file] if labels[file] == label else np.empty((0, 4)) for file in names],
                )
            )
        return {"mAP at 0.5": float(np.nanmean(found))}
    first = [own[:1] for own in boxes]
    overlap = [
        float(iou(own, known[file]).max()) if len(own) else 0.0
        for own, file in zip(first, names, strict=True)
    ]
    return {"CorLoc": corloc(first, [known[file] for file in names]), "mean overlap": float(np.mean(overlap))}


def measure(name: str, method: str, budget: str, results: common.Results) -> None:
    from fieldmark.explain.locate import Locator
    from fieldmark.runtime.bundle import Bundle
    from fieldmark.runtime.catalog import Catalog

    folder = source(name, results.work)
    known = method.endswith("with boxes")
    if known and name == "steel_defects":
        return  # several boxes a photo: none of them is the thing
    with tempfile.TemporaryDirectory(dir=results.work) as place:
        given = folder if known else without_boxes(folder, Path(place) / f"{name}.csv")
        words = ["--method", method.partition(" ")[0], "--budget", budget, "--no-floor", "--no-report"]
        common.fieldmark("train", given, "--out", Path(place) / "run", *words, cache=results.work / "cache")
        locator = Locator(Bundle(Path(place) / "run/model"))
        catalog = Catalog.read(folder)
        labels = {
            Path(p).relative_to(folder).as_posix(): str(x)
            for p, x in zip(catalog.paths, catalog.labels, strict=True)
        }
        learned, tested = catalog.of_split("train"), catalog.of_split("test")
        some = [learned.paths[i] for i in np.linspace(0, len(learned) - 1, CHOOSE).round().astype(int)]
        gains = []
        for threshold in THRESHOLDS:
            locator.threshold = threshold
            gains.append(next(iter(judge(name, folder, list(locator(some)), labels).values())))
        locator.threshold = THRESHOLDS[int(np.argmax(gains))]
        note = f"threshold {locator.threshold:g}"
        for what, value in judge(name, folder, list(locator(tested.paths)), labels).items():
            results.add(f"{method}, {what}", value, "share", set=name, n=len(tested), note=note)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD")
    parser.add_argument("--sets", nargs="+", default=list(SETS), metavar="SET")
    parser.add_argument("--budget", default="3m", metavar="TIME")
    chosen = parser.parse_args()
    results = common.Results(__file__, chosen)
    for name in chosen.sets:
        for method in chosen.methods:
            if not any(
                results.done(f"{method}, {what}", name)
                for what in ("CorLoc", "mAP at 0.5", "overlap of masks")
            ):
                measure(name, method, chosen.budget, results)


if __name__ == "__main__":
    main()
