"""A training run, from photos to a run folder: model/, run.json, split.csv, skipped.csv, report.html."""

from __future__ import annotations

import csv
import hashlib
import json
import platform
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import fieldmark
from fieldmark.data import duplicates
from fieldmark.data import split as splitting
from fieldmark.runtime import image
from fieldmark.runtime.bundle import GRAPH
from fieldmark.runtime.cache import atomic_write
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.decision import softmax
from fieldmark.runtime.errors import FieldmarkError, ImageError, UsageError
from fieldmark.runtime.evaluation import evaluation
from fieldmark.runtime.machine import cores
from fieldmark.runtime.predictor import Predictor
from fieldmark.runtime.results import Evaluation, Skipped
from fieldmark.runtime.stream import ordered_map
from fieldmark.train.instant import Instant, Settings, Trained

NOTES = "run.json"
VERSIONS = ("numpy", "pillow", "openvino", "onnxruntime", "torch", "timm")


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
    settings = _settings(options)
    catalog = Catalog.read(source)
    _check(catalog, source)
    instant = Instant(settings, progress)
    _begin(out, settings)
    try:
        return _train(source, catalog, instant, out, report, progress, started)
    except BaseException:
        if [path.name for path in out.iterdir()] == [NOTES]:  # nothing was made: the place is free again
            (out / NOTES).unlink()
        raise


def _train(
    source: Any,
    catalog: Catalog,
    instant: Instant,
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
    trained = instant.fit(learned, groups, graph)
    tested = catalog.of_split("test")
    content = dict(zip(trained.paths, trained.content, strict=True))
    content |= _hashes(tested.paths, settings.workers)
    split_of = dict(zip(catalog.paths, catalog.splits, strict=True))
    splits: dict[str, str] = {}
    for path in reversed(catalog.paths):  # a copy in train and in test counts as trained on
        if path in content and split_of[path] and splits.get(content[path]) not in ("train", "val"):
            splits[content[path]] = split_of[path]  # type: ignore[assignment]
    out_of_fold = evaluation(
        trained.paths,
        [trained.classes[i] for i in trained.y],
        softmax(trained.choice.logits, trained.choice.temperature),
        trained.classes,
        hashes=trained.content,
    )
    progress("writing the model", 0, None)
    from fieldmark.train.write import write

    write(
        out / "model",
        trained,
        splits=splits,
        ranks=_ranks(learned, trained.classes),
        metrics={
            "out_of_fold": out_of_fold.to_dict(),
            "confusions": _confusions(out_of_fold),
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
            judged = judge(predictor, tested, "test", progress)
            result = judged.evaluation
            skipped += judged.skipped
            warnings += judged.warnings
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
        "mode": "instant",
        "top1": None if result is None else result.top1,
        "n_train": len(trained.y),
        "n_test": None if result is None else result.n,
        "seconds": round(seconds, 3),
        "seconds_evaluate": seconds_evaluate,
        "skipped": len(skipped),
    }
    catalog.write(out / "split.csv")
    _write_skipped(out / "skipped.csv", skipped)
    details = {
        "result": summary,
        "command": sys.argv,
        "seed": settings.seed,
        "settings": asdict(settings),
        "versions": _versions(),
        "data": {
            "source": str(source),
            "sha256": _data_hash(content),
            "photos": len(catalog),
            "classes": len(trained.classes),
        },
        "chosen": {
            "scales": list(trained.graph.scales),
            "ridge": trained.choice.ridge,
            "temperature": trained.choice.temperature,
        },
        "tried": trained.tried,
        "engine": trained.engine,
        "computed": trained.computed,
        "seconds": {"looking": round(trained.seconds.get("describe", 0.0), 3)},
        "out_of_fold": {"top1": out_of_fold.top1, "nll": out_of_fold.nll, "ece": out_of_fold.ece},
        "warnings": warnings,
    }
    if report:
        progress("writing the report", 0, None)
        _report(out, catalog, trained, result, out_of_fold, details, skipped)
    _write_notes(out, details)
    return Run(summary, skipped, warnings)


def _settings(options: Mapping[str, Any]) -> Settings:
    """Options as the command line names them -> Settings; ``size`` may be one number or several."""
    given = {name: value for name, value in options.items() if value is not None}
    if "size" in given:
        size = given.pop("size")
        given["scales"] = tuple(sorted({size} if isinstance(size, int) else set(size), reverse=True))
    known = {f.name for f in fields(Settings)}
    for name in given:
        if name not in known:
            raise UsageError(
                f"there is no setting {name!r}; settings are {', '.join(sorted(known | {'size'}))}"
            )
    return Settings(**given)


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


def _begin(out: Path, settings: Settings) -> None:
    """Find out before the work, not after it, that nothing can be written; clear what a killed run left.

    The first notes say that a run was begun here, so that it may be resumed or written over.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for draft in out.glob(".model-*"):
            shutil.rmtree(draft, ignore_errors=True)
        _write_notes(out, {"command": sys.argv, "seed": settings.seed, "settings": asdict(settings)})
    except OSError as error:
        raise FieldmarkError(
            f"cannot write to {out}: {error.strerror or error}; choose another --out"
        ) from error


def _write_notes(out: Path, details: Mapping[str, Any]) -> None:
    with atomic_write(out / NOTES) as file:
        file.write_text(json.dumps(details, indent=2, ensure_ascii=False), encoding="utf-8")


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


def _write_skipped(path: Path, skipped: list[Skipped]) -> None:
    with path.open("w", encoding="utf-8", newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows((item.path, item.reason) for item in skipped)


def _versions() -> dict[str, str]:
    found = {
        "fieldmark": fieldmark.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _data_hash(content: Mapping[str, str]) -> str:
    return hashlib.sha256("\n".join(sorted(content.values())).encode()).hexdigest()


def _report(
    out: Path,
    catalog: Catalog,
    trained: Trained,
    result: Evaluation | None,
    out_of_fold: Evaluation,
    details: Mapping[str, Any],
    skipped: list[Skipped],
) -> None:
    from fieldmark.report.page import write_report

    data: dict[str, Counter[str]] = {}
    for name, label in zip(catalog.splits, catalog.labels, strict=True):
        if name and label is not None:
            data.setdefault(name, Counter())[label] += 1
    examples: dict[str, list[str]] = {}
    for path, number in zip(trained.paths, trained.y.tolist(), strict=True):
        own = examples.setdefault(trained.classes[number], [])
        if len(own) < 6:
            own.append(path)
    summary = details["result"]
    write_report(
        out / "report.html",
        title=f"{len(trained.classes)} classes from {Path(str(details['data']['source'])).name or 'photos'}",
        evaluation=result,
        out_of_fold=out_of_fold,
        settings={
            "backbone": trained.settings.backbone,
            "method": trained.settings.method,
            "scales (px)": " and ".join(map(str, trained.graph.scales)),
            "engine": trained.engine,
            "seed": trained.settings.seed,
            "temperature": round(trained.choice.temperature, 4),
            "model size (MB)": round((out / "model" / GRAPH).stat().st_size / 1e6, 1),
            "versions": details["versions"],
        },
        data=data,
        skipped=skipped,
        warnings=details["warnings"],
        train_examples=examples,
        seconds={"training": summary["seconds"], "evaluation": summary["seconds_evaluate"] or 0.0},
    )
