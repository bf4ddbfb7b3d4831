"""Tables written row by row, in constant memory, that survive being killed at any moment.

`open_table` gives a writer for CSV, JSON lines or Parquet by the file's ending. Rows have a key (the photo's
path); a stopped table goes on with ``resume=True``, and ``key in writer`` says what is done already.

- CSV and JSON lines: every row is handed to the system at once; on resume a torn last line is cut off.
- Parquet cannot be appended to: rows go to numbered part files in a hidden folder beside the target, each
  written whole or not at all, and are joined at the end in one step.

``writer.saved`` counts the rows that a kill can no longer take: report this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fieldmark.runtime.errors import UsageError
from fieldmark.runtime.tables.base import Kind, TableWriter
from fieldmark.runtime.tables.lines import CsvWriter, JsonlWriter
from fieldmark.runtime.tables.parquet import ParquetWriter, parts_folder

__all__ = ["ENDINGS", "Kind", "TableWriter", "check_table", "open_table"]

_WRITERS: dict[str, type[TableWriter]] = {
    ".csv": CsvWriter,
    ".jsonl": JsonlWriter,
    ".parquet": ParquetWriter,
}
ENDINGS = tuple(_WRITERS)


def open_table(
    path: str | Path,
    columns: Mapping[str, Kind],
    *,
    key: str = "path",
    same: Mapping[str, str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> TableWriter:
    """A writer for ``path``; its ending (.csv, .jsonl, .parquet) names the format.

    ``columns`` maps names to kinds, in order; ``key`` is the column that tells rows apart; ``same``: columns more,
    with a value that all rows share (the model that answers). What is there already is refused (`UsageError`) unless
    ``resume`` (go on, where the shared values are those of now) or ``overwrite`` (start anew).
    """
    path = Path(path)
    check_table(path, columns, resume=resume, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    return _WRITERS[path.suffix.lower()](path, columns, key, resume, same or {})


def check_table(
    path: Path, columns: Mapping[str, Kind], *, resume: bool = False, overwrite: bool = False
) -> None:
    """What `open_table` would refuse, asked before long work; makes nothing."""
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UsageError(f"{path} must end in one of {', '.join(ENDINGS)}")
    if writer is not ParquetWriter and "vector" in columns.values():
        raise UsageError(f"{path} must end in .parquet: vectors do not fit a text file")
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file that ends in one of {', '.join(ENDINGS)}")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    if not (resume or overwrite) and (path.exists() or parts_folder(path).exists()):
        unfinished = "" if path.exists() else " (unfinished)"
        raise UsageError(f"{path} exists already{unfinished}: --resume goes on, --overwrite starts anew")
