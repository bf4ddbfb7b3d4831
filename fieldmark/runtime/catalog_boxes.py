"""Several boxes a photo: a table ``boxes.csv`` beside a table of photos becomes its column ``boxes``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldmark.runtime.catalog_join import same_photo
from fieldmark.runtime.catalog_tables import BOXES as COLUMN
from fieldmark.runtime.catalog_tables import read_table
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.results import Skipped

if TYPE_CHECKING:
    import pyarrow as pa

#: The table.
FILE = "boxes.csv"
#: Columns of one box in pixels of the upright photo.
SIDES = ("box_x", "box_y", "box_w", "box_h")


def with_boxes(table: pa.Table, path: Path, skipped: list[Skipped]) -> pa.Table:
    """``table``, read from ``path``, with the boxes of ``boxes.csv`` beside it: a row a box, with ``file_name``,
    `SIDES` and, where a box has a label of its own, ``label``.

    The column ``boxes`` is JSON, ``[[x, y, w, h, score, label], …]`` (score: none; without a label only the first
    four), null where a photo has no row. A table that has this column already stays as it is. Rows that are no box,
    and a file that is no such table, are added to ``skipped``.
    """
    import pyarrow as pa

    file = path.parent / FILE
    if COLUMN in table.column_names or file == path or not file.is_file():
        return table
    try:
        rows, refused = read_table(file, labelled=False)
        if missing := [name for name in SIDES if name not in rows.column_names]:
            raise FieldmarkError(f"no boxes are read from it: it has no column {missing[0]}")
    except FieldmarkError as error:  # some other table
        skipped.append(Skipped(str(file), str(error)))
        return table
    skipped += refused
    found: dict[str, list[list[Any]]] = {}
    columns = [rows.column(name).to_pylist() for name in ("path", "label", *SIDES)]
    for photo, label, *sides in zip(*columns, strict=True):
        box = [number(side) for side in sides]
        if all(map(math.isfinite, box)):
            found.setdefault(same_photo(photo), []).append([*box, None, label] if label else box)
        else:
            skipped.append(Skipped(f"{file}: {photo}", "a box without a number for each of x, y, w, h"))
    keys = map(same_photo, table["path"].to_pylist())
    cells = [json.dumps(found[key], ensure_ascii=False) if key in found else None for key in keys]
    return table.append_column(COLUMN, pa.array(cells, pa.string()))


def number(value: object) -> float:
    """A cell as a number; NaN for what is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")
