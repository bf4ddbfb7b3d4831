"""The catalog: any source of photos becomes one table, one row a photo, and every consumer takes one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldmark.runtime import catalog_folders as folders
from fieldmark.runtime.catalog_boxes import with_boxes
from fieldmark.runtime.catalog_join import joined, together
from fieldmark.runtime.catalog_tables import ENDINGS, absolute, coarser_ranks, read_table, write_table
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.image import EXTENSIONS
from fieldmark.runtime.results import Skipped

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 1 << 16  # rows that are Python objects at a time


@dataclass(frozen=True, eq=False)
class Catalog:
    """An immutable table of photos.

    ``table``: columns ``path``, ``label`` (may be null), ``split`` ("train", "val", "test" or null), then any
    others, kept as read (``group``, coarser ranks, attributes, boxes, lat, lon, date). ``root``: the folder it
    was read from, where there is one. ``skipped``: rows that were refused while reading, and why.
    """

    table: pa.Table
    root: Path | None = None
    skipped: list[Skipped] = field(default_factory=list)

    @classmethod
    def read(cls, source: str | Path | Sequence[str | Path] | Catalog, *, labelled: bool = True) -> Catalog:
        """Any source of photos.

        ``source``: class folders (``root/class/photo.jpg``); split folders (``root/train|val|test/class/``);
        a folder that holds ``metadata.csv`` or ``metadata.parquet``; a CSV or Parquet file with ``file_name``
        or ``path``, ``label``, and optionally ``split``, ``group`` and more, with ``boxes.csv`` beside it
        (`with_boxes`); several of these. Rows of a table whose label is empty stay if a coarser rank is known
        (`coarse`), else they are listed in ``skipped``.
        With ``labelled=False``, also a photo, photos, and any folder (all photos below it); labels are kept
        where a table gives them. Photos are not opened. Raises FieldmarkError in one line.
        """
        if isinstance(source, Catalog):
            return source
        catalog = cls._of(source, labelled)
        return catalog._labelled(source) if labelled else catalog

    @classmethod
    def _of(cls, source: str | Path | Sequence[str | Path], labelled: bool) -> Catalog:
        if not isinstance(source, (str, Path)):
            return _read_many(list(source), labelled)
        if not str(source):  # as of a shell's variable that is not set; a path would be the folder one is in
            raise FieldmarkError("no photos: the source's name is empty")
        path = Path(source)
        if path.is_dir():
            return _read_folder(path, labelled)
        if not path.exists() and not path.is_symlink():
            raise FieldmarkError(f"no such file or folder: {path}")
        if path.suffix.lower() in ENDINGS:
            return _read_file(path, labelled)
        if labelled:
            kind = "one photo" if folders.is_photo(path.name) else "no catalog"
            raise FieldmarkError(
                f"{path} is {kind}: expected a folder of classes, or a .csv or .parquet table"
            )
        return cls(_table([(str(path), None, None)], []))

    def __len__(self) -> int:
        return self.table.num_rows

    def __eq__(self, other: object) -> bool:
        """Same photos (by absolute path), same columns, same order."""
        if not isinstance(other, Catalog):
            return NotImplemented
        return absolute(self.table).equals(absolute(other.table))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Catalog({len(self)} photos, columns {', '.join(self.table.column_names)})"

    @property
    def paths(self) -> list[str]:
        return self.column("path")

    @property
    def labels(self) -> list[str | None]:
        return self.column("label")

    @property
    def splits(self) -> list[str | None]:
        return self.column("split")

    @property
    def classes(self) -> list[str]:
        """The labels that occur, sorted."""
        import pyarrow.compute as pc

        return sorted(pc.unique(self.table["label"]).drop_null().to_pylist())

    @property
    def coarse(self) -> np.ndarray:
        """[N] bool: the photos that have no label, but a group at a coarser rank (`ranks`)."""
        known = np.zeros(len(self), bool)
        for rank in self.ranks() if self.table["label"].null_count else ():
            known |= self._there(rank)
        return known & ~self._there("label")

    @property
    def has_split(self) -> bool:
        """Whether any row says which split it belongs to."""
        return self.table["split"].null_count < len(self)

    def column(self, name: str) -> list[Any]:
        """One column as Python values (null: None). Raises FieldmarkError where there is none."""
        if name not in self.table.column_names:
            raise FieldmarkError(f"no column {name!r}; columns: {', '.join(self.table.column_names)}")
        return self.table[name].to_pylist()

    def select(self, rows: Any) -> Catalog:
        """Some rows: a boolean mask [N] or row numbers [M], in their order."""
        import pyarrow as pa

        rows = np.asarray(rows)
        if rows.dtype == bool:
            if len(rows) != len(self):
                raise ValueError(f"a mask of {len(rows)} for {len(self)} rows")
            return self._with(self.table.filter(pa.array(rows)))
        return self._with(self.table.take(pa.array(rows.astype(np.int64).ravel())))

    def of_split(self, *names: str) -> Catalog:
        """The rows of one or several splits."""
        import pyarrow as pa
        import pyarrow.compute as pc

        return self._with(
            self.table.filter(pc.is_in(self.table["split"], value_set=pa.array(names, pa.string())))
        )

    def with_column(self, name: str, values: Any) -> Catalog:
        """A further column, or another content for one: any N values (None: null)."""
        import pyarrow as pa

        if not isinstance(values, (pa.Array, pa.ChunkedArray)):
            text = name in ("path", "label", "split", "group")
            values = pa.array(values, pa.string() if text else None, from_pandas=True)
        if name in self.table.column_names:
            return self._with(self.table.set_column(self.table.column_names.index(name), name, values))
        return self._with(self.table.append_column(name, values))

    def ranks(self) -> list[str]:
        """Text columns that look like coarser ranks (family, order…), finest first; none named ``attribute_…``.

        Each label has at most one value, and there are at least two values but fewer than labels.
        """
        return coarser_ranks(self.table)

    def write(self, path: str | Path) -> None:
        """Write as CSV or Parquet, by the file's ending; ``Catalog.read`` gives the same catalog back."""
        write_table(self.table, Path(path))

    def _there(self, name: str) -> np.ndarray:
        """[N] bool: the rows that have a value in this column."""
        return np.asarray(self.table[name].is_valid())

    def _labelled(self, source: Any) -> Catalog:
        """Without the rows that no label of any rank is known of; they are listed."""
        bad = ~(self._there("label") | self.coarse)
        if not bad.any():
            return self
        lost = [Skipped(path, "no label") for path in self.select(bad).paths]
        left = Catalog(self.table, self.root, [*self.skipped, *lost]).select(~bad)
        if not len(left):
            raise FieldmarkError(_no_row(source, left.skipped))
        return left

    def _with(self, table: pa.Table) -> Catalog:
        return Catalog(table, self.root, self.skipped)


def _read_file(path: Path, labelled: bool) -> Catalog:
    table, skipped = read_table(path, labelled)
    if not table.num_rows:
        raise FieldmarkError(_no_row(path, skipped))
    return Catalog(with_boxes(table, path, skipped), path.parent, skipped)


def _no_row(source: Any, skipped: list[Skipped]) -> str:
    why = f": {skipped[0].path}: {skipped[0].reason}" if skipped else ""
    return f"no usable row in {source} ({len(skipped)} left out{why})"


def _read_folder(root: Path, labelled: bool) -> Catalog:
    metadata = next(
        (root / name for name in ("metadata.csv", "metadata.parquet") if (root / name).is_file()), None
    )
    if metadata and labelled:
        return _read_file(metadata, labelled)
    skipped: list[Skipped] = []
    if labelled:
        table = _table(folders.rows(str(root), skipped), skipped)
    else:
        table = _table(((path, None, None) for path in folders.photos(str(root), skipped)), skipped)
    if not table.num_rows:
        raise FieldmarkError(_no_photos(root, labelled, skipped))
    if metadata:
        try:
            table = joined(table, read_table(metadata, labelled=False)[0])
        except FieldmarkError as error:  # some other table: the photos are all that is asked for here
            skipped.append(Skipped(str(metadata), str(error)))
    return Catalog(table, root, skipped)


def _no_photos(root: Path, labelled: bool, skipped: list[Skipped]) -> str:
    if not labelled:
        return f"no photos in {root} (looked for {' '.join(sorted(EXTENSIONS))})"
    loose = sum(item.reason == "in no class folder" for item in skipped)
    if loose:
        return (
            f"{root} holds {loose} photos but no class folders: put them in {root}/<class>/, or give a table"
        )
    return (
        f"no photos in {root}: looked for {root}/<class>/*, {root}/train|val|test/<class>/* "
        f"({' '.join(sorted(EXTENSIONS))}) and {root}/metadata.csv"
    )


def _read_many(sources: list[str | Path], labelled: bool) -> Catalog:
    """Photos, folders and tables, one after another."""
    if not sources:
        raise FieldmarkError("no photos: the list is empty")
    parts: list[Catalog] = []
    photos: list[str] = []

    def flush() -> None:
        if photos:
            skipped: list[Skipped] = []
            parts.append(Catalog(_table(((path, None, None) for path in photos), skipped), None, skipped))
            photos.clear()

    for source in sources:
        # The ending is asked first: a million photos need no look at the disk here.
        if not labelled and (folders.is_photo(str(source)) or not Path(source).exists()):
            photos.append(str(source))
        else:
            flush()
            parts.append(Catalog._of(source, labelled))
    flush()
    table = together([part.table for part in parts])
    return Catalog(table, None, [item for part in parts for item in part.skipped])


def _table(rows: Iterable[folders.Row], skipped: list[Skipped]) -> pa.Table:
    """Rows as columns, a batch at a time."""
    import pyarrow as pa

    schema = pa.schema([(name, pa.string()) for name in ("path", "label", "split")])
    batches = []
    iterator: Iterator[folders.Row] = iter(rows)
    while batch := list(islice(iterator, _BATCH)):
        try:
            columns = [pa.array(column, pa.string()) for column in zip(*batch, strict=True)]
        except UnicodeEncodeError:  # names in bytes that are no text
            good = [row for row in batch if folders.printable(row[0]) == row[0]]
            bad = [row for row in batch if folders.printable(row[0]) != row[0]]
            skipped.extend(Skipped(folders.printable(row[0]), "its name is not valid UTF-8") for row in bad)
            columns = [pa.array([row[index] for row in good], pa.string()) for index in range(3)]
        batches.append(pa.record_batch(columns, schema=schema))
    return pa.Table.from_batches(batches, schema).combine_chunks()
