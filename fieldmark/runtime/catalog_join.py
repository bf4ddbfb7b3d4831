"""Tables of photos put together: one after another, or photos that were found with what a table says of them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING

from fieldmark.runtime.catalog_tables import as_text, flat

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


def together(tables: list[pa.Table]) -> pa.Table:
    """Tables one after another, with all their columns; null where one has none.

    Where a column's types do not agree, tables in which it is empty have no say; where they still do not, it is text.
    """
    import pyarrow as pa

    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        for change in (_untyped, as_text):
            if _agree(tables, name):
                break
            tables = [_changed(table, name, change) for table in tables]
    whole = pa.concat_tables(tables, promote_options="permissive")
    text = [field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in whole.schema]
    return whole.cast(pa.schema(text))


def _agree(tables: list[pa.Table], name: str) -> bool:
    import pyarrow as pa

    schemas = [pa.schema([table.schema.field(name)]) for table in tables if name in table.column_names]
    try:
        pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException:
        return False
    return True


def _changed(table: pa.Table, name: str, change: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> pa.Table:
    if name not in table.column_names:
        return table
    column = flat(table.select([name])).column(0) if change is as_text else table[name]
    return table.set_column(table.column_names.index(name), name, change(column))


def _untyped(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without a value has no type."""
    import pyarrow as pa

    return pa.chunked_array([pa.nulls(len(column))]) if column.null_count == len(column) else column


def _spelled(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    batches = (paths.slice(at, _BATCH).to_pylist() for at in range(0, len(paths), _BATCH))
    return pa.chunked_array([pa.array(map(same_photo, batch), pa.string()) for batch in batches], pa.string())
