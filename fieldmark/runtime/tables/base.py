"""What every table writer promises, and the keys by which rows are told apart."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fieldmark.runtime.errors import UsageError

Kind = Literal["text", "number", "count", "vector"]


class TableWriter:
    """Writes rows (mappings of ``columns``); use it in a ``with``. Left by an error, it can be resumed.

    same: values that all rows share, in columns of their own; a table with others is not gone on with.
    """

    def __init__(
        self, path: Path, columns: Mapping[str, Kind], key: str, resume: bool, same: Mapping[str, str]
    ) -> None:
        self.path, self.columns, self.key, self.same = path, dict(columns), key, dict(same)
        self.columns |= dict.fromkeys(self.same, "text")
        #: Rows that no kill can take any more, those of earlier sittings included.
        self.saved = 0
        self._done = np.empty(0, np.uint64)

    def __contains__(self, value: object) -> bool:
        """Whether an earlier sitting wrote the row of this key."""
        wanted = np.uint64(mark(str(value)))
        place = int(np.searchsorted(self._done, wanted))
        return place < len(self._done) and bool(self._done[place] == wanted)

    def write(self, row: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Put the last rows in place; the table is whole after this."""

    def close(self) -> None:
        """Keep what is written and let go of the file."""

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    def _other_columns(self, names: Sequence[str]) -> UsageError:
        """What is said of a table whose columns are not these."""
        lacks = ", ".join(name for name in self.columns if name not in names)
        more = ", ".join(name for name in names if name not in self.columns)
        told = [f"without {lacks}"] if lacks else []
        told += [f"with {more}"] if more else []
        why = "; ".join(told)[:300] or "in another order"
        return UsageError(
            f"{self.path} has other columns ({why}): give the options it was begun with, or --overwrite starts anew"
        )

    def _key(self, row: Mapping[str, Any]) -> str:
        """The key of a row that is there already. Raises UsageError where it shares other values."""
        for name, value in self.same.items():
            if row[name] != value:
                raise UsageError(
                    f"{self.path} was begun with another {name} ({row[name]}, this is {value}): give that one, "
                    "or --overwrite starts anew"
                )
        return str(row[self.key])

    def _remember(self, keys: Iterable[str]) -> None:
        """Keep 8 bytes a key: a million photos cost 8 MB."""
        marks = array("Q", (mark(key) for key in keys))
        self._done = np.sort(np.frombuffer(marks, np.uint64)) if marks else self._done
        self.saved = len(self._done)


def mark(key: str) -> int:
    """64 bits of a key; bytes that Parquet cannot hold count as it stores them."""
    return int.from_bytes(blake2b(utf8(key).encode(), digest_size=8).digest(), "little")


def utf8(text: str) -> str:
    """The text without lone surrogates (a file name that is not UTF-8 carries some)."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def plain(value: Any, arrays: bool = False) -> Any:
    """A value as JSON and Arrow know it: no NaN, no numpy scalars, no lone surrogates in Arrow."""
    if isinstance(value, np.ndarray):
        return value if arrays else value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value != value:
        return None
    return utf8(value) if arrays and isinstance(value, str) else value
