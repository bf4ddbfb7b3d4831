"""What a fine-tuning run is made of: photos that are learned, and photos that judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fieldmark.data.boxes import boxes, shares
from fieldmark.data.loader import Photos
from fieldmark.runtime import image
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import ImageError
from fieldmark.train.coarse import Taught
from fieldmark.train.instant import Looked, subset
from fieldmark.train.plan import data_key


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
        known: Mapping[str, np.ndarray] | None = None,
        coarse: Taught | None = None,
    ) -> Material:
        """known: path -> its box [4] as shares of the photo's sides; coarse: photos without a class that teach too."""

        def photos(paths: list[str], content: list[str]) -> Photos:
            return Photos(paths, content, min_side=looked.graph.preprocess.min_side, boxes=_of(known, paths))

        part, rows = subset(looked, np.flatnonzero(~held)), np.flatnonzero(held)
        paths, content, y = part.paths, part.content, part.y
        more: list[str] = []
        if coarse is not None and len(coarse.labels):
            more = coarse.photos.content
            paths, content, y = paths + coarse.photos.paths, content + more, np.append(y, coarse.labels)
        judges = photos([looked.paths[i] for i in rows], [looked.content[i] for i in rows])
        labels = [looked.classes[i] for i in looked.y] + y[len(part.y) :].astype(str).tolist()
        key = data_key(looked.content + more, labels, held.tolist(), looked.graph.key)
        return cls(looked, held, part, photos(paths, content), y, judges, key)

    @property
    def y_held(self) -> np.ndarray:
        """[m] classes of the photos that judge."""
        return self.looked.y[self.held]

    @property
    def counts(self) -> np.ndarray:
        """[C] photos of each class that are learned."""
        return np.bincount(self.part.y, minlength=len(self.looked.classes))


def known_boxes(catalog: Catalog) -> dict[str, np.ndarray] | None:
    """Path -> box [4] as shares of the photo's sides, for a catalog with columns box_x … (None: it has none)."""
    found = boxes(catalog)
    if found is None or not np.isfinite(found).any():
        return None
    known = {}
    for path, box in zip(catalog.paths, found, strict=True):
        if np.isfinite(box).all():
            try:
                size = image.size(image.read(path))
            except ImageError:  # it is listed where it is read as a whole
                continue
            known[path] = shares(box[None], np.array([size]))[0]
    return known


def _of(known: Mapping[str, np.ndarray] | None, paths: list[str]) -> np.ndarray | None:
    if not known:
        return None
    nowhere = np.full(4, np.nan, np.float32)
    return np.stack([known.get(path, nowhere) for path in paths])
