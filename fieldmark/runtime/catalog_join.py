"""Photos that were found, with what a table says of them."""

from __future__ import annotations

import os
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 1 << 16  # rows that are Python objects at a time


def same_photo(path: str) -> str:
    """One spelling of a path, however it is written: absolute, without ``./``, the system's separators, NFC."""
    return unicodedata.normalize("NFC", os.path.abspath(path))  # noqa: PTH100 (links are not resolved)


def joined(table: pa.Table, metadata: pa.Table) -> pa.Table:
    """All photos of ``table``, with the columns of ``metadata`` where it knows them."""
    import pyarrow.compute as pc

    at = pc.index_in(_spelled(table["path"]), value_set=_spelled(metadata["path"]))
    known = metadata.take(at.combine_chunks())
    for index, name in enumerate(known.column_names):
        if name != "path":
            column = known.column(name)
            table = (
                table.set_column(index, name, column)
                if name in table.column_names
                else table.append_column(name, column)
            )
    return table


def _spelled(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    batches = (paths.slice(at, _BATCH).to_pylist() for at in range(0, len(paths), _BATCH))
    return pa.chunked_array([pa.array(map(same_photo, batch), pa.string()) for batch in batches], pa.string())
