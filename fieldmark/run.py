"""A training run, from photos to a run folder: model/, run.json, split.csv, skipped.csv, report.html."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.data import duplicates
from fieldmark.data import split as splitting
from fieldmark.run_folder import (
    NOTES,
    begin,
    data_hash,
    versions,
    write_notes,
    write_run_report,
    write_skipped,
)
from fieldmark.runtime import image
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError, ImageError
from fieldmark.runtime.machine import cores
from fieldmark.runtime.predictor import Predictor
from fieldmark.runtime.results import Evaluation, Skipped
from fieldmark.runtime.stream import ordered_map
from fieldmark.train.instant import Instant
from fieldmark.train.recipe import Recipe, divide


@dataclass(frozen=True)
class Run:
    """summary: the fields of `fieldmark train --json`."""

    summary: dict[str, Any]
    skipped: list[Skipped]
    warnings: list[str]


def train(
    source: Any,
    out: Path,
    options: Mapping[str, Any],
    report: bool,
    progress: Callable[..., None],
    started: float,
) -> Run:
    """Train on ``source`` and write the run folder ``out``. started: ``time.time()`` when the work began."""
    settings, recipe = divide(options)
    catalog = Catalog.read(source)
    _check(catalog, source)
    instant = Instant(settings, progress)
    begin(out, settings)
    try:
        return _train(source, catalog, instant, recipe, out, report, progress, started)
    except BaseException:
        if [path.name for path in out.iterdir()] == [NOTES]:  # nothing was made: the place is free again
            (out / NOTES).unlink()
        raise


def _train(
    source: Any,
    catalog: Catalog,
    instant: Instant,
    recipe: Recipe | None,
    out: Path,
    report: bool,
    progress: Callable[..., None],
    started: float,
) -> Run:
    settings = instant.settings
    # PyTorch takes seconds to import where the graph must be made: photos are read meanwhile.
    with ThreadPoolExecutor(1) as aside:
        pending = aside.submit(
            instant.graph, settings.scales[0] if settings.scales else None, settings.scales
        )
        if not catalog.has_split:
            catalog = splitting.assign(
                catalog,
                seed=settings.seed,
                workers=settings.workers,
                progress=_adding(progress, "reading photos", len(catalog)),
            )
        learned = catalog.of_split("train", "val")
        learned = learned.select([label is not None for label in learned.labels])
        _check(learned, f"{source} (train and val{_lost(catalog)})")
        prints = duplicates.fingerprints(learned.paths, settings.workers)
        named = learned.column("group") if "group" in learned.table.column_names else None
        # By content, so that the same photos give the same model whatever their names and order.
        order = np.argsort(prints.content, kind="stable")
        learned, groups = learned.select(order), duplicates.groups(prints, named)[order]
        graph = pending.result()
    if recipe is not None:
        from fieldmark.train.finetune import finetune

        trained = finetune(instant, recipe, learned, groups, graph, out / "checkpoints", progress, started)
    else:
        trained = instant.fit(learned, groups, graph)
    tested = catalog.of_split("test")
    content = dict(zip(trained.paths, trained.content, strict=True))
    content |= _hashes(tested.paths, settings.workers)
    split_of = dict(zip(catalog.paths, catalog.splits, strict=True))
    splits: dict[str, str] = {}
    for path in reversed(catalog.paths):  # a copy in train and in test counts as trained on
        if path in content and split_of[path] and splits.get(content[path]) not in ("train", "val"):
            splits[content[path]] = split_of[path]  # type: ignore[assignment]
    judged = trained.evaluation()
    progress("writing the model", 0, None)
    from fieldmark.train.write import write

    write(
        out / "model",
        trained,
        splits=splits,
        ranks=_ranks(learned, trained.classes),
        metrics={
            trained.judged.how.replace(" ", "_"): judged.to_dict(),
            "confusions": _confusions(judged),
            "tried": trained.tried,
        },
    )
    predictor = Predictor.load(
        out / "model",
        engine=_answering(settings.engine),
        precision=settings.precision,
        workers=settings.workers,
    )
    try:
        predictor.check()
    except FieldmarkError:
        shutil.rmtree(out / "model")
        raise
    seconds = time.time() - started

    skipped = [*catalog.skipped, *trained.skipped]
    warnings = list(trained.warnings)
    if unknown := catalog.table["split"].null_count:
        warnings.append(f"{unknown} photos have no split in {source}: they are neither learned nor tested")
    result: Evaluation | None = None
    seconds_evaluate = None
    if len(tested):
        from fieldmark.evaluate.judge import TRAINED_ON, NothingLeftError, judge

        begun = time.time()
        try:
            answers = judge(predictor, tested, "test", progress)
            result = answers.evaluation
            skipped += answers.skipped
            warnings += answers.warnings
            if copies := result.excluded_by_reason.get(TRAINED_ON):
                warnings.append(f"{copies} test photos are copies of photos trained on: they are not counted")
            result.save(out)
        except NothingLeftError as error:
            skipped += error.skipped
            warnings.append(str(error))
        skipped = list(dict.fromkeys(skipped))
        seconds_evaluate = round(time.time() - begun, 3)
    summary = {
        "model": str(out / "model"),
        "mode": trained.mode,
        "top1": None if result is None else result.top1,
        "n_train": len(trained.y),
        "n_test": None if result is None else result.n,
        "seconds": round(seconds, 3),
        "seconds_evaluate": seconds_evaluate,
        "skipped": len(skipped),
    }
    if settings.mode == "finetune":
        names = ("epochs", "photos_per_second", "resumed_at_step")
        summary |= {name: trained.chosen.get(name) for name in names}
    catalog.write(out / "split.csv")
    write_skipped(out / "skipped.csv", skipped)
    details = {
        "result": summary,
        "command": sys.argv,
        "seed": settings.seed,
        "settings": asdict(settings),
        "versions": versions(),
        "data": {
            "source": str(source),
            "sha256": data_hash(content),
            "photos": len(catalog),
            "classes": len(trained.classes),
        },
        "chosen": trained.chosen,
        "curve": trained.curve,
        "tried": trained.tried,
        "engine": trained.engine,
        "computed": trained.computed,
        "seconds": {"looking": round(trained.seconds.get("describe", 0.0), 3)},
        trained.judged.how.replace(" ", "_"): {"top1": judged.top1, "nll": judged.nll, "ece": judged.ece},
        "warnings": warnings,
    }
    if report:
        progress("writing the report", 0, None)
        write_run_report(out, catalog, trained, result, judged, details, skipped)
    write_notes(out, details)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return Run(summary, skipped, warnings)


def _answering(engine: str) -> str:
    """The engine of the finished model: models answer without PyTorch."""
    return "auto" if engine == "torch" else engine


def _check(catalog: Catalog, source: Any) -> None:
    classes = catalog.classes
    if len(classes) < 2:
        what = f"one class ({classes[0]!r})" if classes else "no labelled photos"
        raise FieldmarkError(
            f"{source} has {what} to train on: at least two classes are needed, a folder or label each"
        )


def _lost(catalog: Catalog) -> str:
    """Words for photos that could not be used, where there are any."""
    return f"; {len(catalog.skipped)} photos or rows cannot be used" if catalog.skipped else ""


def _adding(progress: Callable[..., None], what: str, total: int) -> Callable[[int], None]:
    """Turn "so many more are done" into "so many are done"."""
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        progress(what, done, total)

    return more


def _hashes(paths: list[str], workers: int | None) -> dict[str, str]:
    """Content hashes of the photos that can be read."""

    def one(path: str) -> str:
        try:
            return image.content_hash(image.read(path))
        except ImageError:
            return ""

    hashed = zip(paths, ordered_map(one, paths, workers or cores(), 64), strict=True)
    return {path: name for path, name in hashed if name}


def _ranks(catalog: Catalog, classes: list[str]) -> dict[str, dict[str, str | None]]:
    """Coarser ranks of each class, as far as the catalog's columns give them."""
    answer = {}
    for rank in catalog.ranks():
        values = dict(zip(catalog.labels, catalog.column(rank), strict=True))
        answer[rank] = {name: None if values.get(name) is None else str(values[name]) for name in classes}
    return answer


def _confusions(result: Evaluation) -> list[dict[str, Any]]:
    counts = result.confusion.copy()
    np.fill_diagonal(counts, 0)
    order = np.argsort(counts, axis=None)[::-1][:20]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, counts.shape), strict=True)]
    return [
        {"label": result.classes[i], "predicted": result.classes[j], "n": int(counts[i, j])}
        for i, j in pairs
        if counts[i, j]
    ]
