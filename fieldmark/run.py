"""A training run, from photos to a run folder: model/, run.json, split.csv, skipped.csv, report.html."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fieldmark.run_folder import (
    NOTES,
    begin,
    data_hash,
    versions,
    write_notes,
    write_run_report,
    write_skipped,
    write_training,
)
from fieldmark.run_photos import Learned, check, contradictions, learned, ranks, splits_of, waiting
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.engine import REFERENCE
from fieldmark.runtime.errors import FieldmarkError, UsageError
from fieldmark.runtime.machine import cores
from fieldmark.runtime.predictor import Predictor
from fieldmark.runtime.results import Evaluation, Skipped
from fieldmark.train import processes
from fieldmark.train.choose import AUTO, resolved
from fieldmark.train.instant import Instant
from fieldmark.train.plan.plan import PLAN
from fieldmark.train.recipe import Recipe
from fieldmark.train.textbook.recipe import FromScratch, divide
from fieldmark.train.trained import Trained


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
    """Train on ``source`` and write the run folder ``out``. started: ``time.time()`` when the work began.

    Of several processes one writes; the others give an empty `Run`.
    """
    if options.get("method") != AUTO:
        divide(options)  # what cannot be is refused before any photo is looked for
    catalog = Catalog.read(source)
    check(catalog, source)
    options, why = resolved(options, catalog)
    settings, recipe = divide(options)
    if why:
        progress("", 0, None, why)
    instant = Instant(settings, progress)
    folder = out / "checkpoints"
    if not processes.main():
        if recipe is not None:  # instant mode is the work of one
            _learn(source, catalog, instant, recipe, folder, started)
        return Run({}, [], [])
    if recipe is None and (folder / PLAN).exists():
        raise UsageError(
            f"the run in {out} was begun as fine-tuning: give its --budget or --epochs, or start again with --overwrite"
        )
    begin(out, settings)
    try:
        photos, trained = _learn(source, catalog, instant, recipe, folder, started)
        assert trained is not None
        catalog = photos.catalog
        content = photos.tested | dict(zip(trained.paths, trained.content, strict=True)) | trained.coarse
        progress("writing the model", 0, None)
        judged = trained.evaluation()
        splits = splits_of(catalog, content)
        predictor = _write(out / "model", trained, judged, splits, ranks(photos.chosen, trained.classes))
        seconds = time.time() - started
        test = _Test(predictor, catalog.of_split("test"), out, progress)
    except BaseException:
        if [path.name for path in out.iterdir()] == [NOTES]:  # nothing was made: the place is free again
            (out / NOTES).unlink()
        raise
    idle, why_idle = waiting(catalog, trained)
    skipped = list(dict.fromkeys([*catalog.skipped, *trained.skipped, *test.skipped, *idle]))
    warnings = [*trained.warnings, *contradictions(catalog, content), *test.warnings, *why_idle]
    if unknown := catalog.table["split"].null_count:
        warnings.append(f"{unknown} photos have no split in {source}: they are neither learned nor tested")
    summary = {
        "model": str(out / "model"),
        "mode": trained.mode,
        "top1": None if test.result is None else test.result.top1,
        "n_train": len(trained.y),
        "n_test": None if test.result is None else test.result.n,
        "seconds": round(seconds, 3),
        "seconds_evaluate": test.seconds,
        "skipped": len(skipped),
    }
    if trained.coarse:
        summary["n_train_coarse"] = len(trained.coarse)
    if settings.mode != "instant":
        names = ("epochs", "photos_per_second", "resumed_at_step")
        summary |= {name: trained.chosen.get(name) for name in names}
    catalog.write(out / "split.csv")
    write_skipped(out / "skipped.csv", skipped)
    write_training(out, trained)
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
        "chosen": trained.chosen | ({"method": why} if why else {}),
        "curve": trained.curve,
        "cross_validation": trained.cross_validation,
        "tried": trained.tried,
        "engine": trained.engine,
        "computed": trained.computed,
        "seconds": {"looking": round(trained.seconds.get("describe", 0.0), 3)},
        trained.judged.how.replace(" ", "_"): {"top1": judged.top1, "nll": judged.nll, "ece": judged.ece},
        "warnings": warnings,
    }
    write_notes(out, details)
    if report:
        progress("writing the report", 0, None)
        write_run_report(out, catalog, trained, test.result, judged, details, skipped)
    shutil.rmtree(folder, ignore_errors=True)
    return Run(summary, skipped, warnings)


def _learn(
    source: Any,
    catalog: Catalog,
    instant: Instant,
    recipe: Recipe | FromScratch | None,
    folder: Path,
    started: float,
) -> tuple[Learned, Trained | None]:
    """Train in the mode that the recipe says: the photos that were learned, and what came of it (in the process that
    writes)."""
    settings, progress = instant.settings, instant.report
    if isinstance(recipe, FromScratch):
        from fieldmark.train.scratch import train_from_scratch

        photos = learned(source, catalog, settings, progress)
        return photos, train_from_scratch(
            settings, recipe, photos.chosen, photos.groups, folder, progress, started
        )
    # PyTorch takes seconds to import where the graph must be made: photos are read meanwhile.
    with ThreadPoolExecutor(1) as aside:
        size = settings.scales[0] if settings.scales else None
        pending = aside.submit(instant.graph, size, settings.scales)
        photos = learned(source, catalog, settings, progress)
        graph = pending.result()
    chosen, groups = photos.chosen, photos.groups
    if recipe is None:
        return photos, instant.fit(chosen, groups, graph)
    from fieldmark.train.finetune import finetune

    names = ranks(chosen, chosen.classes)
    return photos, finetune(
        instant, recipe, chosen, groups, graph, folder, progress, started, names, photos.coarse
    )


def _write(
    target: Path,
    trained: Trained,
    judged: Evaluation,
    splits: Mapping[str, str],
    ranks: Mapping[str, Mapping[str, str | None]],
) -> Predictor:
    """Write the model folder, and open it: it must compute what was trained, by the reference engine if need be."""
    from fieldmark.train.bundle.write import write

    how = trained.judged.how.replace(" ", "_")
    metrics = {how: judged.to_dict(), "confusions": _confusions(judged), "tried": trained.tried}
    settings = trained.settings
    engine = "auto" if settings.engine == "torch" else settings.engine  # models answer without PyTorch
    workers = settings.workers or cores(alone=True)
    while True:
        write(target, trained, splits=splits, ranks=ranks, metrics=metrics)
        predictor = Predictor.load(target, engine=engine, precision=settings.precision, workers=workers)
        try:
            predictor.check()
            return predictor
        except FieldmarkError as error:
            shutil.rmtree(target)
            if engine != "auto" or trained.serves:
                raise
            trained.serves = REFERENCE  # the engine that was compared with PyTorch
            trained.warnings.append(f"{REFERENCE} answers for this model: {error}")


class _Test:
    """What the model says of the test photos. result, seconds: None where there are none."""

    def __init__(self, predictor: Predictor, photos: Catalog, out: Path, progress: Callable[..., None]):
        self.result: Evaluation | None = None
        self.seconds: float | None = None
        self.skipped: list[Skipped] = []
        self.warnings: list[str] = []
        if not len(photos):
            return
        from fieldmark.evaluate.judge import TRAINED_ON, NothingLeftError, judge

        begun = time.time()
        try:
            own = Catalog(photos.table, photos.root)  # refused rows are of no split: the run tells of them
            answers = judge(predictor, own, "test", progress)
            self.result, self.skipped, self.warnings = answers.evaluation, answers.skipped, answers.warnings
            if copies := answers.evaluation.excluded_by_reason.get(TRAINED_ON):
                self.warnings.append(
                    f"{copies} test photos are copies of photos trained on: they are not counted"
                )
            answers.evaluation.save(out)
        except NothingLeftError as error:
            self.skipped, self.warnings = error.skipped, [str(error)]
        self.seconds = round(time.time() - begun, 3)


def _confusions(result: Evaluation, limit: int = 20) -> list[dict[str, Any]]:
    """The most frequent mistakes; without a matrix, which takes gigabytes where classes are many."""
    columns = (result.predictions[name].to_pylist() for name in ("label", "predicted"))
    pairs = Counter((label, called) for label, called in zip(*columns, strict=True) if label != called)
    most = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:limit]
    return [{"label": label, "predicted": called, "n": n} for (label, called), n in most]
