"""Boxes that a catalog gives with its photos: one in four columns NAME_x, NAME_y, NAME_w and NAME_h (pixels), or
any number in the column ``boxes``."""

from __future__ import annotations

import json
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np

from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.catalog_boxes import COLUMN, SIDES, number
from fieldmark.runtime.errors import FieldmarkError


class Boxes(NamedTuple):
    """Of one photo. places: float32 [n, 4] left, top, right, bottom; labels: [n], None: that of the photo."""

    places: np.ndarray
    labels: list[str | None]


def boxes(catalog: Catalog, name: str = "box") -> np.ndarray | None:
    """Left, top, right, bottom in pixels of the upright photo, float32 [N, 4]; NaN where a photo has none.

    None where the catalog has no such columns.
    """
    columns = [f"{name}_{side}" for side in "xywh"]
    if not set(columns) <= set(catalog.table.column_names):
        return None
    return _corners([[number(value) for value in catalog.column(column)] for column in columns])


def has_boxes(catalog: Catalog) -> bool:
    """Has the catalog the columns of one box a photo, or of several?"""
    columns = set(catalog.table.column_names)
    return COLUMN in columns or set(SIDES) <= columns


def all_boxes(catalog: Catalog) -> list[Boxes] | None:
    """All boxes of every photo [N], in pixels: those of the column ``boxes``, or, where that says nothing, the one of
    the columns box_x …

    The column holds JSON, ``[[x, y, w, h, score, label], …]``, as ``fieldmark locate`` writes it; score and label may
    be left out, and the score is not read. Boxes without width or height are left out. None where the catalog has
    neither; FieldmarkError, in a line, for a cell that is no such list.
    """
    single, several = boxes(catalog), COLUMN in catalog.table.column_names
    if single is None and not several:
        return None
    cells = catalog.column(COLUMN) if several else [None] * len(catalog)
    alone = np.full((len(catalog), 4), np.nan, np.float32) if single is None else single
    return [
        _good(box[None], [None]) if cell is None or cell == "" else _parsed(path, cell)
        for path, cell, box in zip(catalog.paths, cells, alone, strict=True)
    ]


def _parsed(path: str, cell: Any) -> Boxes:
    try:
        rows = json.loads(cell) if isinstance(cell, str) else list(cell)
        found = _corners([[float(row[side]) for row in rows] for side in range(4)])
        labels = [row[5] if len(row) > 5 else None for row in rows]
    except (TypeError, ValueError, KeyError, IndexError):
        raise FieldmarkError(
            f"boxes of {path}: {str(cell)[:60]!r} is no list [[x, y, w, h], …] in pixels: correct it, or leave it empty"
        ) from None
    return _good(found, [None if label is None else normalize("NFC", str(label)) for label in labels])


def _good(found: np.ndarray, labels: list[str | None]) -> Boxes:
    """Without rows of NaN."""
    good = np.flatnonzero(np.isfinite(found).all(1))
    return Boxes(found[good], [labels[i] for i in good])


def shares(found: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes [N, 4] in pixels -> as shares of the photos' sides, clipped to them. sizes: [N, 2], width and height."""
    return np.clip(found / np.tile(np.asarray(sizes, np.float32), 2), 0, 1)


def _corners(columns: list[list[float]]) -> np.ndarray:
    """x, y, width, height, each [N] -> left, top, right, bottom, float32 [N, 4]; NaN for what is no box."""
    found = np.array(columns, np.float32).T.reshape(-1, 4)
    found[:, 2:] += found[:, :2]
    found[~np.isfinite(found).all(1) | (found[:, 2:] <= found[:, :2]).any(1)] = np.nan
    return found
