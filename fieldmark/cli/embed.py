"""``fieldmark embed``: the embedding of every photo, as Parquet."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldmark.cli.common import (
    Engine,
    Model,
    Overwrite,
    Photos,
    Precision,
    Resume,
    Workers,
    model_folder,
    shared,
    verb,
)
from fieldmark.cli.screen import Screen

if TYPE_CHECKING:
    from fieldmark.runtime.catalog import Catalog
    from fieldmark.runtime.predictor import Predictor
    from fieldmark.runtime.tables import Kind

COLUMNS: dict[str, Kind] = {
    "path": "text",
    "label": "text",
    "split": "text",
    "embedding": "vector",
    "error": "text",
}


@verb(
    examples="""
    fieldmark embed runs/mine/model photos/ --out embeddings.parquet
    fieldmark embed runs/mine/model photos/ --out embeddings.parquet --resume
    """
)
def embed(
    screen: Screen,
    model: Model,
    source: Photos,
    out: Annotated[Path, typer.Option(help="A .parquet file.", show_default=False)],
    resume: Resume = False,
    overwrite: Overwrite = False,
    engine: Engine = "auto",
    precision: Precision = "f32",
    workers: Workers = None,
) -> None:
    """Write the embedding of every photo to a Parquet file.

    Columns: path, label and split (where known), embedding (a list of numbers of length 1), error, model (a
    short name of the model's content), and setting where --precision is not f32: --resume goes on with the same
    of both only.
    """
    from fieldmark.runtime.predictor import Predictor
    from fieldmark.runtime.tables import check_table, open_table

    check_table(out, COLUMNS, resume=resume, overwrite=overwrite)
    catalog = read_photos(source)
    predictor = Predictor.load(model_folder(model), engine=engine, precision=precision, workers=workers)
    same = shared(predictor.bundle.key, precision=(precision, "f32"))
    with (
        open_table(out, COLUMNS, same=same, resume=resume, overwrite=overwrite) as table,
        screen.progress() as progress,
    ):
        before, errors = table.saved, 0
        for row in rows(predictor, catalog, table):
            table.write(row)
            errors += row["error"] is not None
            progress("photos", table.saved, len(catalog) + len(catalog.skipped))
    count = table.saved - before
    screen.note(f"{count} embeddings to {out} in {screen.seconds():.1f} s")
    if errors:
        screen.note(f"{errors} photos could not be read; the column error says so")
    seconds = round(screen.seconds(), 3)
    screen.answer({"out": out, "photos": count, "errors": errors, "seconds": seconds})


def read_photos(source: list[str]) -> Catalog:
    """All photos, with labels where tables or class folders give them."""
    from fieldmark.runtime.catalog import Catalog
    from fieldmark.runtime.errors import FieldmarkError

    catalog = Catalog.read(source if len(source) > 1 else source[0], labelled=False)
    known: dict[str, tuple[str | None, str | None]] = {}
    for folder in (one for one in source if Path(one).is_dir()):
        with contextlib.suppress(FieldmarkError):  # no class folders
            found = Catalog.read(folder)
            known |= dict(zip(found.paths, zip(found.labels, found.splits, strict=True), strict=True))
    for place, name in enumerate(("label", "split")):
        own = zip(catalog.paths, catalog.column(name), strict=True)
        catalog = catalog.with_column(
            name, [value or known.get(path, (None, None))[place] for path, value in own]
        )
    return catalog


def rows(predictor: Predictor, catalog: Catalog, done: Container[str] = ()) -> Iterator[dict[str, Any]]:
    """Rows of ``COLUMNS``, in constant memory; each path once. What the catalog could not take says why."""
    known = dict(zip(catalog.paths, zip(catalog.labels, catalog.splits, strict=True), strict=True))
    for answer in predictor.answers((path for path in known if path not in done), "embedding"):
        label, split = known[answer.source]
        yield {
            "path": answer.source,
            "label": label,
            "split": split,
            "embedding": answer.values,
            "error": answer.error,
        }
    for item in catalog.skipped:
        if item.path not in done:
            yield {"path": item.path, "error": item.reason}
