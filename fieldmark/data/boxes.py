"""Boxes that a catalog gives with its photos, in four columns NAME_x, NAME_y, NAME_w and NAME_h (pixels)."""

from __future__ import annotations

import numpy as np

from fieldmark.runtime.catalog import Catalog


def boxes(catalog: Catalog, name: str = "box") -> np.ndarray | None:
    """Left, top, right, bottom in pixels of the upright photo, float32 [N, 4]; NaN where a photo has none.

    None where the catalog has no such columns.
    """
    columns = [f"{name}_{side}" for side in "xywh"]
    if not set(columns) <= set(catalog.table.column_names):
        return None
    values = [[_number(value) for value in catalog.column(column)] for column in columns]
    found = np.array(values, np.float32).T.reshape(-1, 4)
    found[:, 2:] += found[:, :2]
    found[~np.isfinite(found).all(1) | (found[:, 2:] <= found[:, :2]).any(1)] = np.nan
    return found


def shares(found: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes [N, 4] in pixels -> as shares of the photos' sides, clipped to them. sizes: [N, 2], width and height."""
    return np.clip(found / np.tile(np.asarray(sizes, np.float32), 2), 0, 1)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")
