"""Boxes that come with photos."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from fieldmark.data.boxes import all_boxes, boxes, shares
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError


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


def test_several_boxes_of_a_photo() -> None:
    """As text or as lists; with a score and a label of its own, or without; what is no box is left out."""
    cells = ['[[1, 2, 3, 4], [5, 5, 10, 10, 0.9, "猫"], [1, 1, 0, 5, null, "b"]]', "[]", "", None]
    found = all_boxes(catalog(boxes=cells))
    assert found is not None
    np.testing.assert_array_equal(found[0].places, [[1, 2, 4, 6], [5, 5, 15, 15]])
    assert found[0].labels == [None, "猫"] and found[0].places.dtype == np.float32
    assert [one.places.shape for one in found[1:]] == [(0, 4)] * 3 and found[1].labels == []
    (decomposed,) = all_boxes(catalog(boxes=['[[0, 0, 1, 1, 1, "e\u0301"]]'])) or []
    assert decomposed.labels == ["é"], "as labels of photos are"
    (listed,) = all_boxes(catalog(boxes=[[[1.0, 2.0, 3.0, 4.0]]])) or []
    assert listed.places.tolist() == [[1, 2, 4, 6]]


def test_the_one_box_where_several_are_not_given() -> None:
    columns = {f"box_{side}": [1, 1, None] for side in "xywh"}
    found = all_boxes(catalog(boxes=["[[0, 0, 9, 9]]", None, None], **columns))
    assert found is not None and [one.places.tolist() for one in found] == [
        [[0, 0, 9, 9]],
        [[1, 1, 2, 2]],
        [],
    ]
    assert all_boxes(catalog(**columns)) is not None and all_boxes(catalog(other=[1])) is None


@pytest.mark.parametrize("cell", ["[[1, 2", "7", "[[1, 2, 3]]", '[["a", 1, 1, 1]]', '{"a": 1}', "[3]"])
def test_what_is_no_list_of_boxes_is_said(cell: str) -> None:
    with pytest.raises(FieldmarkError, match=r"boxes of 1.jpg: .* is no list \[\[x, y, w, h\]") as error:
        all_boxes(catalog(boxes=["[]", cell]))
    assert "\n" not in str(error.value)
