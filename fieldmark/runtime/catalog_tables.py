"""CSV and Parquet tables of photos, read into the columns that every catalog has."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fieldmark.runtime.catalog_folders import SPLITS
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.results import Skipped

if TYPE_CHECKING:
    import pyarrow as pa

#: File endings of tables.
ENDINGS = frozenset({".csv", ".tsv", ".parquet"})
#: Columns whose cells are text whatever they look like ("007" is a name).
NAMES = ("path", "label", "split", "group")
#: The column that holds several boxes a photo (`fieldmark.runtime.catalog_boxes`).
BOXES = "boxes"
_MISSING = ("NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None")
_WHOLE = r"^[+-]?(0|[1-9][0-9]*)$"
_NUMBER = r"^[+-]?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][+-]?[0-9]+)?$"
_ABSOLUTE = r"^(/|\\\\|[A-Za-z]:[/\\])"


def read_table(path: Path, labelled: bool = True) -> tuple[pa.Table, list[Skipped]]:
    """A table file as columns path, label, split and all others, and the rows that had to be left out.

    ``file_name`` is another name for ``path``; paths are relative to the table's folder. Text in further
    columns becomes numbers where all of a column's cells are; empty cells become null.
    Raises FieldmarkError in one line.
    """
    skipped: list[Skipped] = []
    table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path, skipped)
    table = _with_names(table, path, labelled)
    table, refused = _checked(table, path, labelled)
    return _resolved(table, path.parent), skipped + refused


def write_table(table: pa.Table, path: Path) -> None:
    """Write CSV or Parquet, by the file's ending; with absolute paths, so that any folder may hold it."""
    table = absolute(table)
    if path.suffix.lower() == ".parquet":
        from pyarrow import parquet

        parquet.write_table(table, path)
        return
    from pyarrow import csv

    csv.write_csv(flat(table), path, csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ","))


def absolute(table: pa.Table) -> pa.Table:
    """The same table with paths that do not depend on the working folder (links are not resolved)."""
    return _resolved(table, Path.cwd())


def coarser_ranks(table: pa.Table) -> list[str]:
    """Names of the columns that look like coarser ranks, see `Catalog.ranks`; rows without a label have no say."""
    found, classes = [], len(table["label"].unique().drop_null())
    for name, kind in zip(table.schema.names, table.schema.types, strict=True):
        if name in (*NAMES, BOXES) or name.startswith("attribute_") or not _is_text(kind):
            continue
        pairs = table.select(["label", name]).drop_null().group_by(["label", name]).aggregate([])
        labels, values = pairs["label"].unique(), pairs[name].unique()
        if len(labels) == pairs.num_rows and 2 <= len(values) < classes:
            found.append((len(values), name))
    return [name for _, name in sorted(found, key=lambda item: -item[0])]


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise FieldmarkError(f"cannot read {path} as Parquet: {_first_line(error)}") from None
    return table.select([name for name in table.column_names if not name.startswith("__index_level_")])


def _read_csv(path: Path, skipped: list[Skipped]) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv

    with path.open("rb") as file:
        head = file.read(1 << 16)
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf8"
    text = head.decode(encoding, "replace").lstrip("\ufeff \r\n")
    if not text:
        raise FieldmarkError(f"{path} is empty: expected the columns file_name, label")
    if "\0" in text:
        raise FieldmarkError(f"{path} is not a CSV file: it holds binary data")
    header = "".join(text.splitlines()[0].split('"')[::2])  # outside quotes
    delimiter = max(",;\t", key=header.count)

    def refuse(row: csv.InvalidRow) -> str:
        reason = f"row has {row.actual_columns} cells, expected {row.expected_columns}"
        skipped.append(Skipped(f"{path}: {row.text[:80]}", reason))
        return "skip"

    reading = csv.ReadOptions(encoding=encoding, block_size=1 << 24)
    try:
        options = csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=lambda row: "skip"
        )
        with csv.open_csv(path, reading, options) as reader:
            names = reader.schema.names
        options.invalid_row_handler = refuse
        # Everything is text first: a class may be called "001", "NA" or "null".
        cells = csv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        )
        table = csv.read_csv(path, reading, options, cells)
    except pa.ArrowException as error:
        if "utf" in str(error).lower():
            raise FieldmarkError(f"{path} is not UTF-8 text: save it as 'CSV UTF-8'") from None
        raise FieldmarkError(f"cannot read {path} as CSV: {_first_line(error)}") from None
    columns = [
        column if _known(name) else _numbers(column, decimal_comma=delimiter == ";")
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    return pa.table(columns, names=table.column_names)


def _numbers(column: pa.ChunkedArray, decimal_comma: bool) -> pa.ChunkedArray:
    """Text as whole numbers or floating point where every cell is one; else as it was."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pc.utf8_trim_whitespace(_present(column))
    if decimal_comma:
        text = pc.replace_substring(text, ",", ".")
    if text.null_count == len(text):
        return text
    try:
        if pc.all(pc.match_substring_regex(text, _WHOLE)).as_py():
            return text.cast(pa.int64())
        if pc.all(pc.match_substring_regex(text, _NUMBER)).as_py():
            return text.cast(pa.float64())
    except pa.ArrowInvalid:  # too long for 64 bits: an identifier, not an amount
        pass
    return column


def _present(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text with null for what says that nothing is known."""
    import pyarrow as pa
    import pyarrow.compute as pc

    missing = pc.is_in(pc.utf8_trim_whitespace(column), value_set=pa.array(("", *_MISSING)))
    return pc.if_else(missing, pa.scalar(None, pa.string()), column)


def _known(name: str) -> str | None:
    """The catalog's own name for a column, however it is written; None for a further column."""
    name = name.strip().lower()
    return "path" if name == "file_name" else name if name in NAMES else None


def _with_names(table: pa.Table, path: Path, labelled: bool) -> pa.Table:
    """The table with columns path, label, split first (text; null where the table has none)."""
    import pyarrow as pa

    def missing(what: str) -> FieldmarkError:
        return FieldmarkError(
            f"{path} has no column {what}; its columns: {', '.join(table.column_names)[:300]}"
        )

    found: dict[str, int] = {}
    for index, name in enumerate(table.column_names):
        known = _known(name)
        # An exact "path" goes before "file_name", which then stays a further column.
        if known and (known not in found or name == known):
            found[known] = index
    if "path" not in found:
        raise missing("file_name or path")
    if labelled and "label" not in found:
        raise missing("label")
    columns: dict[str, pa.ChunkedArray] = {}
    for name in ("path", "label", "split"):
        columns[name] = as_text(table.column(found[name])) if name in found else _nulls(len(table))
    taken = {found[name] for name in columns if name in found}
    for index, name in enumerate(table.column_names):
        if index not in taken:
            name = "group" if index == found.get("group") else name
            if name in columns:
                raise FieldmarkError(f"{path} has two columns called {name!r}: rename one")
            column = table.column(index)
            columns[name] = _present(as_text(column)) if name == "group" else column
    return pa.table(columns)


def _checked(table: pa.Table, path: Path, labelled: bool) -> tuple[pa.Table, list[Skipped]]:
    """Rows that can be used, with labels in NFC (null where empty) and splits by their usual names; and the others.

    A split of another name is null where nothing depends on it (not ``labelled``)."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    def blank(name: str) -> np.ndarray:
        column = pc.fill_null(table.column(name), "")
        return np.asarray(pc.equal(pc.binary_length(pc.utf8_trim_whitespace(column)), 0))

    label = pc.utf8_normalize(table.column("label"), form="NFC")
    none = pa.scalar(None, pa.string())
    table = table.set_column(1, "label", pc.if_else(pa.array(blank("label")), none, label))
    written = pc.utf8_lower(pc.utf8_trim_whitespace(table.column("split")))
    at = pc.index_in(written, value_set=pa.array(list(SPLITS)))
    split = pa.chunked_array(
        [pa.array(list(SPLITS.values())).take(chunk) for chunk in at.chunks], pa.string()
    )
    reasons = [
        ("no file name in this row", blank("path")),
        ("unknown split", np.asarray(pc.is_null(split)) & ~blank("split") & labelled),
    ]
    bad = np.logical_or.reduce([mask for _, mask in reasons])
    skipped = []
    for row in np.flatnonzero(bad).tolist():
        reason = next(words for words, mask in reasons if mask[row])
        if reason == "unknown split":
            reason += f" {table['split'][row].as_py()!r} (known: train, val, test)"
        skipped.append(Skipped(table["path"][row].as_py() or f"{path}: row {row + 1}", reason))
    table = table.set_column(2, "split", split)
    return (table.filter(pa.array(~bad)) if bad.any() else table), skipped


def _resolved(table: pa.Table, folder: Path) -> pa.Table:
    """Paths relative to ``folder`` made complete."""
    import pyarrow as pa
    import pyarrow.compute as pc

    paths = table.column("path")
    if os.sep == "/" and not pc.any(pc.match_substring(paths, "/")).as_py():
        paths = pc.replace_substring(paths, "\\", "/")  # a table that was made on Windows
    if folder != Path():
        start = str(folder) + ("" if str(folder).endswith(os.sep) else os.sep)
        relative = pc.replace_substring_regex(paths, r"^(\./)+", "")
        complete = pc.binary_join_element_wise(pa.scalar(start), relative, pa.scalar(""))
        paths = pc.if_else(pc.match_substring_regex(paths, _ABSOLUTE), paths, complete)
    return table.set_column(table.column_names.index("path"), "path", paths)


def flat(table: pa.Table) -> pa.Table:
    """Lists and structures as JSON text, dictionaries as their values: what a CSV cell can hold."""
    import pyarrow as pa

    for index, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            cells = [
                None if value is None else json.dumps(value, default=str)
                for value in table[index].to_pylist()
            ]
            table = table.set_column(index, field.name, pa.array(cells, pa.string()))
        elif pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(field.type.value_type))
    return table


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string())


def _is_text(kind: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind)


def _nulls(length: int) -> pa.ChunkedArray:
    import pyarrow as pa

    return pa.chunked_array([pa.nulls(length, pa.string())])


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
