"""Parquet cannot be appended to: numbered part files, each whole or absent, are joined at the end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldmark.runtime.cache import atomic_write
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.tables.base import Kind, TableWriter, mark, plain

if TYPE_CHECKING:
    import pyarrow as pa

#: A part file is closed after so many rows or seconds, whichever comes first.
PART_ROWS = 2048
PART_SECONDS = 3.0
#: Stands beside the parts where they are to replace the table that is there, and not to go on with it.
ANEW = "anew"


class ParquetWriter(TableWriter):
    """Part files in a hidden folder, joined at the end; what was at ``path`` stays until then."""

    def __init__(
        self, path: Path, columns: Mapping[str, Kind], key: str, resume: bool, same: Mapping[str, str]
    ) -> None:
        super().__init__(path, columns, key, resume, same)
        self._folder = parts_folder(path)
        anew = self._folder / ANEW
        if not resume:
            shutil.rmtree(self._folder, ignore_errors=True)
            if path.exists():
                self._folder.mkdir(exist_ok=True)
                anew.touch()
        self._before = [path] if path.exists() and not anew.exists() else []
        for left in self._folder.glob(".tmp-*"):
            left.unlink(missing_ok=True)
        parts = self._part_files()
        self._next = int(parts[-1].stem) + 1 if parts else 0
        self._remember(self._keys([*self._before, *parts]))
        self._folder.mkdir(exist_ok=True)
        self._rows: list[Mapping[str, Any]] = []
        self._since = time.monotonic()

    def write(self, row: Mapping[str, Any]) -> None:
        row = {**row, **self.same}
        self._rows.append({name: plain(row.get(name), arrays=True) for name in self.columns})
        if len(self._rows) >= PART_ROWS or time.monotonic() - self._since >= PART_SECONDS:
            self._flush()

    def finish(self) -> None:
        """Join all parts, each key once, and put the table in place in one step."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._flush()
        files = [*self._before, *self._part_files()]
        marks = np.fromiter(map(mark, self._keys(files)), np.uint64)
        fresh = np.zeros(len(marks), bool)  # a kill between joining and tidying leaves rows twice
        fresh[np.unique(marks, return_index=True)[1]] = True
        place = 0
        with (
            atomic_write(self.path) as temporary,
            pq.ParquetWriter(temporary, self._schema(), compression="zstd") as joined,
        ):
            waiting: list[pa.RecordBatch] = []
            for batch in self._batches(files):
                waiting.append(batch.filter(pa.array(fresh[place : place + len(batch)])))
                place += len(batch)
                if sum(map(len, waiting)) >= PART_ROWS:
                    joined.write_table(pa.Table.from_batches(waiting))
                    waiting.clear()
            if waiting:
                joined.write_table(pa.Table.from_batches(waiting))
        self.saved = int(fresh.sum())
        (self._folder / ANEW).unlink(missing_ok=True)  # before the parts that the new table holds
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Rows that are computed are kept for ``resume``, unless the table is finished."""
        if self._folder.exists():
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            import pyarrow as pa
            import pyarrow.parquet as pq

            table = pa.Table.from_pylist(self._rows, self._schema())
            with atomic_write(self._folder / f"{self._next:08}.parquet") as temporary:
                pq.write_table(table, temporary)
            self._next += 1
            self.saved += len(self._rows)
            self._rows.clear()
        self._since = time.monotonic()

    def _schema(self) -> pa.Schema:
        import pyarrow as pa

        kinds: dict[str, Callable[[], pa.DataType]] = {
            "text": pa.string,
            "number": pa.float32,
            "count": pa.int64,
            "vector": lambda: pa.list_(pa.float32()),
        }
        return pa.schema([(name, kinds[kind]()) for name, kind in self.columns.items()])

    def _part_files(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*.parquet"))

    def _keys(self, files: Sequence[Path]) -> Iterator[str]:
        for batch in self._batches(files, [self.key, *self.same]):
            yield from map(self._key, batch.to_pylist())

    def _batches(self, files: Sequence[Path], only: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for path in files:
            try:
                with pq.ParquetFile(path) as file:
                    if file.schema_arrow.names != list(self.columns):
                        raise self._other_columns(file.schema_arrow.names)
                    yield from file.iter_batches(PART_ROWS, columns=only)
            except pa.ArrowInvalid as error:
                raise FieldmarkError(f"{path} is damaged: --overwrite starts anew") from error


def parts_folder(path: Path) -> Path:
    return path.with_name(f".{path.name}.parts")
