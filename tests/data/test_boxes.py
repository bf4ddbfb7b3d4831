"""Boxes that come with photos."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from fieldmark.data.boxes import boxes, shares
from fieldmark.runtime.catalog import Catalog


def catalog(**columns: list) -> Catalog:
    n = len(next(iter(columns.values())))
    return Catalog(pa.table({"path": [f"{i}.jpg" for i in range(n)], "label": ["a"] * n, **columns}))


def test_corners_in_pixels() -> None:
    found = boxes(catalog(box_x=[10, 0], box_y=[20.0, 1.0], box_w=[30, 4], box_h=[40, 5]))
    assert found is not None
    np.testing.assert_array_equal(found, [[10, 20, 40, 60], [0, 1, 4, 6]])
    assert found.dtype == np.float32


@pytest.mark.parametrize("width", [None, float("nan"), 0, -3, "wide"])
def test_what_is_no_box_is_nan(width) -> None:
    values = ["5", width] if isinstance(width, str) else [5.0, width]
    found = boxes(catalog(box_x=[1, 1], box_y=[2, 2], box_w=values, box_h=[3, 3]))
    assert found is not None
    np.testing.assert_array_equal(found[0], [1, 2, 6, 5])
    assert np.isnan(found[1]).all()


def test_photos_without_boxes() -> None:
    assert boxes(catalog(box_x=[1], box_y=[1], box_w=[1])) is None
    found = boxes(catalog(mark_x=[1], mark_y=[1], mark_w=[1], mark_h=[1]), "mark")
    assert found is not None and found.tolist() == [[1, 1, 2, 2]]


def test_shares_of_the_sides() -> None:
    found = np.array([[10, 20, 50, 120], [np.nan] * 4], np.float32)
    scaled = shares(found, np.array([[100, 100], [10, 10]]))
    np.testing.assert_allclose(scaled[0], [0.1, 0.2, 0.5, 1.0])
    assert np.isnan(scaled[1]).all()
