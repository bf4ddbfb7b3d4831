"""``fieldmark predict``: photos in, a table of answers out, in constant memory; stopped and continued."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
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
from fieldmark.cli.screen import Screen, json_line
from fieldmark.runtime.results import TOP, Prediction, Skipped

if TYPE_CHECKING:
    from fieldmark.runtime.catalog import Catalog
    from fieldmark.runtime.predictor import Predictor
    from fieldmark.runtime.tables import Kind

#: Photos of whole specimens that are answered in one go (``--by``).
_CHUNK = 256


@verb(
    examples="""
    fieldmark predict runs/mine/model photo.jpg
    fieldmark predict runs/mine/model new_photos/ --out predictions.csv
    fieldmark predict runs/mine/model new_photos/ --out predictions.csv --resume
    fieldmark predict runs/mine/model specimens.csv --by group --out specimens.parquet
    """
)
def predict(
    screen: Screen,
    model: Model,
    source: Photos,
    out: Annotated[
        Path | None, typer.Option(help="A .csv, .jsonl or .parquet file.  [default: the screen]")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Pool the photos that share this column: one row a specimen."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=TOP, help="How many classes are listed.")] = TOP,
    resume: Resume = False,
    overwrite: Overwrite = False,
    engine: Engine = "auto",
    precision: Precision = "f32",
    workers: Workers = None,
) -> None:
    """Name the photos in a folder, a table or a single file.

    Columns: path, label, score, label_2, score_2 ... label_5, score_5, error, model. A photo that cannot be
    read keeps its row, with the reason in the column error. model is a short name of the model's content;
    where --precision is not f32, the column setting says so: --resume goes on with the same of both only.
    """
    from fieldmark.runtime.errors import UsageError

    if by in {*columns("", TOP, pooled=True), "model", "setting"}:
        raise UsageError(f"--by {by} is a column of the answer: give the table's column another name")
    key, what = by or "path", "specimens" if by else "photos"
    kinds = columns(key, top, pooled=by is not None)
    if out is not None:
        from fieldmark.runtime.tables import check_table, open_table

        check_table(out, kinds, resume=resume, overwrite=overwrite)
    elif resume or overwrite:
        raise UsageError("--resume and --overwrite need --out: the table they are about")
    catalog, paths, skipped = _photos(source, by)

    from fieldmark.runtime.predictor import Predictor

    predictor = Predictor.load(model_folder(model), engine=engine, precision=precision, workers=workers)

    def answers(done: Container[str]) -> Iterator[dict[str, Any]]:
        if by is not None and catalog is not None:
            return _pooled(predictor, catalog, by, done)
        return _single(predictor, paths, skipped, done)

    if out is None:
        count, errors = _show(screen, answers(()), key, top, alone=len(paths) == 1)
    else:
        same = shared(predictor.bundle.key, precision=(precision, "f32"))
        total = len(skipped) + (len({*catalog.column(by)}) if by and catalog else len(paths))
        with (
            open_table(out, kinds, key=key, same=same, resume=resume, overwrite=overwrite) as table,
            screen.progress() as progress,
        ):
            before, errors = table.saved, 0
            for row in answers(table):
                table.write(row)
                errors += bool(row["error"])
                progress(what, table.saved, total)
        count = table.saved - before
        if before:
            screen.note(f"{before} {what} were done before")
    _tell(screen, out, count, errors, what)


def columns(key: str, top: int, pooled: bool) -> dict[str, Kind]:
    """The columns of the table, in order."""
    answer: dict[str, Kind] = {key: "text"}
    if pooled:
        answer["photos"] = "count"
    for rank in range(1, top + 1):
        suffix = "" if rank == 1 else f"_{rank}"
        answer |= {f"label{suffix}": "text", f"score{suffix}": "number"}
    return answer | {"error": "text"}


def _photos(source: list[str], by: str | None) -> tuple[Catalog | None, list[str], list[Skipped]]:
    """The photos, each once. A single photo needs no catalog: that saves half a second."""
    from fieldmark.runtime.image import EXTENSIONS

    alone = Path(source[0])
    if len(source) == 1 and by is None and alone.suffix.lower() in EXTENSIONS and alone.is_file():
        return None, source, []
    from fieldmark.runtime.catalog import Catalog

    catalog = Catalog.read(source[0] if len(source) == 1 else source, labelled=False)
    return catalog, list(dict.fromkeys(catalog.paths)), catalog.skipped


def _single(
    predictor: Predictor, paths: list[str], skipped: list[Skipped], done: Container[str]
) -> Iterator[dict[str, Any]]:
    for prediction in predictor.stream(path for path in paths if path not in done):
        yield prediction.to_row()
    for item in skipped:
        if item.path not in done:
            yield Prediction(item.path, error=item.reason).to_row()


def _pooled(
    predictor: Predictor, catalog: Catalog, by: str, done: Container[str]
) -> Iterator[dict[str, Any]]:
    """One row a specimen; a photo without one stands for itself, and so does one that the catalog refused."""
    specimens: dict[str, list[str]] = {}
    for path, name in zip(catalog.paths, catalog.column(by), strict=True):
        specimens.setdefault(path if name is None else str(name), []).append(path)
    waiting: dict[str, list[str]] = {}
    for name, paths in specimens.items():
        if name not in done:
            waiting[name] = paths
        if sum(map(len, waiting.values())) >= _CHUNK:
            yield from _pool(predictor, waiting, by)
            waiting = {}
    yield from _pool(predictor, waiting, by)
    for path, reason in {item.path: item.reason for item in catalog.skipped}.items():
        if path not in done and path not in specimens:
            yield Prediction("", error=reason).to_row() | {by: path, "photos": 0}


def _pool(predictor: Predictor, specimens: Mapping[str, list[str]], by: str) -> Iterator[dict[str, Any]]:
    import numpy as np

    from fieldmark.runtime import decision

    if not specimens:
        return
    scores = predictor.predict_proba([path for paths in specimens.values() for path in paths])
    place = 0
    for name, paths in specimens.items():
        own = scores[place : place + len(paths)]
        place += len(paths)
        good = own[np.isfinite(own).all(1)]  # a photo that cannot be read has a row of NaN
        lost = len(own) - len(good)
        if len(good):
            best = decision.top(decision.pool(good)[None], predictor.classes, TOP)[0]
            error = f"{lost} of {len(own)} photos cannot be read" if lost else None
        else:
            best, error = (), "no photo can be read"
        yield Prediction("", best, error).to_row() | {by: name, "photos": len(good)}


def _show(screen: Screen, rows: Iterable[dict[str, Any]], key: str, top: int, alone: bool) -> tuple[int, int]:
    """Answers on the screen: a small chart for one photo, a line each for many, JSON lines with --json."""
    count = errors = 0
    for row in rows:
        count, errors = count + 1, errors + bool(row["error"])
        if screen.json:
            print(json_line(row))
        elif row["label"] is None:
            screen.say(f"{row[key]}\t-\t{row['error']}")
        elif alone:
            screen.say(str(row[key]))
            for rank in range(1, top + 1):
                suffix = "" if rank == 1 else f"_{rank}"
                if row[f"label{suffix}"] is not None:
                    score = row[f"score{suffix}"]
                    screen.say(f"  {score:6.1%}  {'█' * round(20 * score):20}  {row[f'label{suffix}']}")
        else:
            screen.say(f"{row[key]}\t{row['label']}\t{row['score']:.3f}")
    return count, errors


def _tell(screen: Screen, out: Path | None, count: int, errors: int, what: str) -> None:
    seconds = screen.seconds()
    if out is not None:
        rate = f" ({count / seconds:.0f} a second)" if count >= 10 else ""
        screen.note(f"{count} {what} to {out} in {seconds:.1f} s{rate}")
    if errors:
        where = "; the column error says why" if out is not None else ""
        screen.note(f"{errors} of them have an error{where}")
    screen.answer({"out": out, what: count, "errors": errors, "seconds": round(seconds, 3)})
