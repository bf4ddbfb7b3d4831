"""How well are things found, by models that were taught only classes and by those that were taught boxes?
``python benchmarks/locate.py``

Models of several methods (each trained for ``--budget``, one seed) say where things are; boxes of the data and masks
of the rendered look-alikes say whether that is right: CorLoc (the first box overlaps the true one by half) and mean
overlap on cub10_parts, average precision at 0.5 (mean of the classes; each box by its own class, which is the photo's
where a model has no other) on steel_defects, whose photos have several boxes, and overlap of masks with the beetle's on
look-alikes. ``two_stage`` is trained with and without the boxes, the detector ``fcos`` with them. The threshold is the
one of five that is best on photos of train (a detector's is 0.05: the more boxes, the larger the area under its curve).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import numpy as np
from PIL import Image

from fieldmark.data.boxes import Boxes, all_boxes
from fieldmark.runtime.catalog import Catalog

if TYPE_CHECKING:
    from fieldmark.explain.locate import Located

SETS = ("cub10_parts", "steel_defects", "look-alikes")
METHODS = ("plain", "wsdan", "two_stage", "two_stage with boxes", "fcos with boxes")
THRESHOLDS = (0.1, 0.2, 0.3, 0.45, 0.6)
DETECTOR = (0.05,)
#: Boxes a photo: more change average precision by little.
MOST = 100
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


def truth(catalog: Catalog) -> dict[str, Boxes]:
    """Path -> boxes in pixels, each with its class."""
    known = zip(catalog.paths, catalog.labels, all_boxes(catalog) or (), strict=True)
    return {path: Boxes(places, [label or own for label in labels]) for path, own, (places, labels) in known}


def without_boxes(folder: Path, target: Path) -> Path:
    """The same photos as a table without any other column."""
    return common.table(Catalog.read(folder), target)


def judge(name: str, folder: Path, located: list[Located], known: dict[str, Boxes]) -> dict[str, float]:
    """The set's measures."""
    from fieldmark.evaluate.boxes import average_precision, corloc, iou, mask_iou

    if name == "look-alikes":
        overlaps = []
        for one in located:
            assert one.mask is not None
            mask = folder / "masks" / Path(one.path).relative_to(folder).with_suffix(".png")
            overlaps.append(mask_iou(one.mask, np.asarray(Image.open(mask)) > 0))
        return {"overlap of masks": float(np.mean(overlaps))}
    boxes = [np.array([thing.box for thing in one.things]).reshape(-1, 4) for one in located]
    true = [known[one.path].places for one in located]
    if name == "steel_defects":
        scores = [np.array([thing.score for thing in one.things]) for one in located]
        kinds = [np.array([thing.label for thing in one.things], object) for one in located]
        true_kinds = [np.array(known[one.path].labels, object) for one in located]

        def of(label: str, values: list[np.ndarray], kinds: list[np.ndarray]) -> list[np.ndarray]:
            return [own[kind == label] for own, kind in zip(values, kinds, strict=True)]

        found = [
            average_precision(of(label, boxes, kinds), of(label, scores, kinds), of(label, true, true_kinds))
            for label in sorted({str(label) for own in known.values() for label in own.labels})
        ]
        return {"mAP at 0.5": float(np.nanmean(found))}
    first = [own[:1] for own in boxes]
    overlap = [float(iou(own, box).max()) if len(own) else 0.0 for own, box in zip(first, true, strict=True)]
    return {"CorLoc": corloc(first, true), "mean overlap": float(np.mean(overlap))}


def measure(name: str, method: str, budget: str, results: common.Results) -> None:
    from fieldmark.explain.locate import Locator
    from fieldmark.runtime.bundle import Bundle

    folder = source(name, results.work)
    taught, detector = method.endswith("with boxes"), method.startswith("fcos")
    if detector and name == "look-alikes":
        return  # boxes are no masks
    with tempfile.TemporaryDirectory(dir=results.work) as place:
        given = folder if taught else without_boxes(folder, Path(place) / f"{name}.csv")
        words = ["--method", method.partition(" ")[0], "--budget", budget, "--no-floor", "--no-report"]
        common.fieldmark("train", given, "--out", Path(place) / "run", *words, cache=Path(place) / "cache")
        locator = Locator(Bundle(Path(place) / "run/model"), MOST)
        catalog = Catalog.read(folder)
        known = truth(catalog)
        learned, tested = catalog.of_split("train"), catalog.of_split("test")
        some = [learned.paths[i] for i in np.linspace(0, len(learned) - 1, CHOOSE).round().astype(int)]
        gains = []
        thresholds = DETECTOR if detector else THRESHOLDS
        for threshold in thresholds:
            locator.threshold = threshold
            gains.append(next(iter(judge(name, folder, list(locator(some)), known).values())))
        locator.threshold = thresholds[int(np.argmax(gains))]
        note = f"threshold {locator.threshold:g}"
        for what, value in judge(name, folder, list(locator(tested.paths)), known).items():
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
