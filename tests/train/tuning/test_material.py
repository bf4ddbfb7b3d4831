"""Boxes of a catalog on their way to training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from fieldmark.data.augment import Augment
from fieldmark.data.loader import Loader, Photos
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.preprocess import Preprocess
from fieldmark.train.tuning.material import _of, known_boxes

NAN = float("nan")


def catalog(folder: Path, cells: list[str | None]) -> Catalog:
    paths = []
    for number in range(len(cells)):
        paths.append(str(folder / f"{number}.png"))
        Image.new("RGB", (100, 50), (number, 0, 0)).save(paths[-1])
    return Catalog(
        pa.table({"path": paths, "label": ["a"] * len(cells), "boxes": pa.array(cells, pa.string())})
    )


def test_boxes_become_shares_and_class_numbers(tmp_path: Path) -> None:
    """A box has its own label or the photo's; one of no class is left out; photos without any have none."""
    cells = ['[[10, 10, 20, 20], [50, 0, 100, 25, 1, "b"]]', None, '[[0, 0, 50, 50, null, "c"]]']
    photos = catalog(tmp_path, cells)
    known = known_boxes(photos)
    assert known is not None and set(known) == {photos.paths[0], photos.paths[2]}
    found = _of(known, photos.paths, ["a", "b", "a"], ["a", "b"])
    assert found is not None and found.dtype == np.float32
    expected = np.full((3, 2, 5), NAN)
    expected[0] = [[0.1, 0.2, 0.3, 0.6, 0], [0.5, 0, 1, 0.5, 1]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert _of(known, photos.paths[1:], ["b", "a"], ["a", "b"]) is None
    assert known_boxes(catalog(tmp_path, [None, "[]"])) is None
    assert known_boxes(Catalog(photos.table.drop(["boxes"]))) is None


def test_photos_that_cannot_be_read_have_none(tmp_path: Path) -> None:
    photos = catalog(tmp_path, ["[[1, 1, 9, 9]]", "[[1, 1, 9, 9]]"])
    Path(photos.paths[0]).write_bytes(b"no photo")
    known = known_boxes(photos)
    assert known is not None and list(known) == [photos.paths[1]]


def test_loaders_tell_where_they_lie_in_views(tmp_path: Path) -> None:
    photos = catalog(tmp_path, ["[[0, 0, 25, 50], [50, 0, 25, 25]]", None])
    boxes = _of(known_boxes(photos) or {}, photos.paths, ["a", "b"], ["a", "b"])
    settings = Augment.none().model_copy(update={"flip": True})
    loader = Loader(
        Photos(photos.paths, boxes=boxes), Preprocess(size=32, resize="stretch"), settings, workers=0
    )
    loader.photos.load(0), loader.photos.load(1)
    lefts = set()
    for epoch in range(8):
        told = loader.boxes(np.array([1, 0]), epoch)
        assert told is not None and told.shape == (2, 2, 5) and np.isnan(told[0]).all()
        lefts.add(tuple(np.round(told[1, :, 0], 3).tolist()))
        np.testing.assert_allclose(told[1, :, 2] - told[1, :, 0], 0.25)
    assert lefts == {(0.0, 0.5), (0.75, 0.25)}
