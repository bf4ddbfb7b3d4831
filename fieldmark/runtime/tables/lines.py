"""CSV and JSON lines: one text file that is appended to; a torn last row is cut off before going on."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.tables.base import Kind, TableWriter, plain, utf8


class _LineWriter(TableWriter):
    """What CSV and JSON lines share: append to one text file."""

    def __init__(
        self, path: Path, columns: Mapping[str, Kind], key: str, resume: bool, same: Mapping[str, str]
    ) -> None:
        super().__init__(path, columns, key, resume, same)
        if resume and path.exists():
            _cut(path, self._ends)
            self._remember(self._keys())
        # newline="" and "\n": the same bytes on every system. Odd bytes in file names pass through.
        self._file = path.open(
            "a" if resume else "w", encoding="utf-8", newline="", errors="surrogateescape", buffering=1 << 16
        )

    def write(self, row: Mapping[str, Any]) -> None:
        self._put({**row, **self.same})
        self._file.flush()
        self.saved += 1

    def close(self) -> None:
        self._file.close()

    def _put(self, row: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _keys(self) -> Iterator[str]:
        raise NotImplementedError

    @staticmethod
    def _ends(block: bytes, quoted: bool) -> tuple[int, bool]:
        """How much of ``block`` is whole rows, and whether it ends inside quotes."""
        return block.rfind(b"\n") + 1, False


class JsonlWriter(_LineWriter):
    """One JSON object a line."""

    def _put(self, row: Mapping[str, Any]) -> None:
        text = json.dumps({name: plain(row.get(name)) for name in self.columns}, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError:  # a file name that is not UTF-8
            text = json.dumps(json.loads(text))
        self._file.write(text + "\n")

    def _keys(self) -> Iterator[str]:
        with self.path.open(encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise FieldmarkError(
                        f"{self.path}, line {number} is not a row of this table: --overwrite starts anew"
                    )
                if row.keys() != self.columns.keys():
                    raise self._other_columns(list(row))
                yield self._key(row)


class CsvWriter(_LineWriter):
    """Comma-separated, with a header; fields with commas, quotes or newlines are quoted (RFC 4180)."""

    def __init__(
        self, path: Path, columns: Mapping[str, Kind], key: str, resume: bool, same: Mapping[str, str]
    ) -> None:
        super().__init__(path, columns, key, resume, same)
        if path.stat().st_size == 0:
            self._file.write(",".join(map(_field, self.columns)) + "\n")
            self._file.flush()

    def _put(self, row: Mapping[str, Any]) -> None:
        self._file.write(",".join(_field(row.get(name)) for name in self.columns) + "\n")

    def _keys(self) -> Iterator[str]:
        with self.path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, None)
            if header is None:
                return
            if header != list(self.columns):
                raise self._other_columns(header)
            for row in rows:
                if len(row) != len(header):
                    raise FieldmarkError(
                        f"{self.path}, line {rows.line_num} is damaged: --overwrite starts anew"
                    )
                yield self._key(dict(zip(header, row, strict=True)))

    @staticmethod
    def _ends(block: bytes, quoted: bool) -> tuple[int, bool]:
        # A newline ends a row where the number of quotes before it is even ("" inside a field adds two).
        end, start = 0, 0
        while (stop := block.find(b"\n", start)) >= 0:
            quoted ^= block.count(b'"', start, stop) % 2 == 1
            start = stop + 1
            if not quoted:
                end = start
        return end, quoted ^ (block.count(b'"', start) % 2 == 1)


def _field(value: Any) -> str:
    """A CSV field; six digits of a score are nearly all that float32 has.

    Quoted here, as the csv module of Python 3.11 writes a lone carriage return bare and then reads two rows.
    """
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        text = utf8(text)
    if any(mark in text for mark in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def _cut(path: Path, ends: Callable[[bytes, bool], tuple[int, bool]], size: int = 1 << 20) -> None:
    """Cut a torn last row off a text file, reading it once in blocks."""
    whole = place = 0
    quoted = False
    with path.open("rb+") as file:
        while block := file.read(size):
            end, quoted = ends(block, quoted)
            if end:
                whole = place + end
            place += len(block)
        if whole < place:
            file.truncate(whole)
