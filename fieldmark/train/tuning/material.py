"""What a fine-tuning run is made of: photos that are learned, and photos that judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fieldmark.data.boxes import Boxes, all_boxes, shares
from fieldmark.data.loader import Photos
from fieldmark.runtime import image
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import ImageError
from fieldmark.train.instant import Looked, subset
from fieldmark.train.plan.plan import data_key
from fieldmark.train.tuning.coarse import Taught


@dataclass(frozen=True)
class Material:
    """looked: all photos with a class; held: [N] bool, those that judge; part: what the frozen graph saw in the others;
    train: the photos that are learned, those of ``part`` first, then those without a class; y: [n] their labels (see
    `Batch`); judges: the photos that judge; key: names all of it, so that a killed run goes on with the same only."""

    looked: Looked
    held: np.ndarray
    part: Looked
    train: Photos
    y: np.ndarray
    judges: Photos
    key: str

    @classmethod
    def of(
        cls,
        looked: Looked,
        held: np.ndarray,
        known: Mapping[str, Boxes] | None = None,
        coarse: Taught | None = None,
    ) -> Material:
        """known: path -> its boxes as shares of the photo's sides; coarse: photos without a class that teach too."""

        def photos(paths: list[str], content: list[str], y: np.ndarray) -> Photos:
            labels = [looked.classes[i] if i < len(looked.classes) else "" for i in y]
            boxes = _of(known or {}, paths, labels, looked.classes)
            return Photos(paths, content, min_side=looked.graph.preprocess.min_side, boxes=boxes)

        part, rows = subset(looked, np.flatnonzero(~held)), np.flatnonzero(held)
        paths, content, y = part.paths, part.content, part.y
        more: list[str] = []
        if coarse is not None and len(coarse.labels):
            more = coarse.photos.content
            paths, content, y = paths + coarse.photos.paths, content + more, np.append(y, coarse.labels)
        judges = photos([looked.paths[i] for i in rows], [looked.content[i] for i in rows], looked.y[rows])
        labels = [looked.classes[i] for i in looked.y] + y[len(part.y) :].astype(str).tolist()
        read = looked.graph.preprocess.model_dump(mode="json")
        key = data_key(looked.content + more, labels, held.tolist(), looked.graph.key, read)
        return cls(looked, held, part, photos(paths, content, y), y, judges, key)

    @property
    def y_held(self) -> np.ndarray:
        """[m] classes of the photos that judge."""
        return self.looked.y[self.held]

    @property
    def counts(self) -> np.ndarray:
        """[C] photos of each class that are learned."""
        return np.bincount(self.part.y, minlength=len(self.looked.classes))


def known_boxes(catalog: Catalog) -> dict[str, Boxes] | None:
    """Path -> boxes as shares of the photo's sides, of photos that have any (`all_boxes`; None: none has)."""
    known = {}
    for path, (places, labels) in zip(catalog.paths, all_boxes(catalog) or (), strict=False):
        if len(places):
            try:
                size = image.size(image.read(path))
            except ImageError:  # it is listed where it is read as a whole
                continue
            known[path] = Boxes(shares(places, np.array([size])), labels)
    return known or None


def _of(
    known: Mapping[str, Boxes], paths: Sequence[str], labels: Sequence[str], classes: Sequence[str]
) -> np.ndarray | None:
    """Boxes of N photos [N, K, 5], as `Photos` has them; a box of none of the ``classes`` is left out. labels: of the
    photos, which their boxes have where they have none of their own. None: no box is left."""
    number = {name: i for i, name in enumerate(classes)}
    rows = []
    for path, own in zip(paths, labels, strict=True):
        boxes = known.get(path)
        named = zip(boxes.places, (label or own for label in boxes.labels), strict=True) if boxes else ()
        rows.append([[*place, number[label]] for place, label in named if label in number])
    most = max(map(len, rows), default=0)
    if not most:
        return None
    found = np.full((len(rows), most, 5), np.nan, np.float32)
    for row, own_boxes in zip(found, rows, strict=True):
        if own_boxes:
            row[: len(own_boxes)] = own_boxes
    return found
