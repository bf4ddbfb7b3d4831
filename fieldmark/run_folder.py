"""The files of a run folder beside the model: run.json, skipped.csv, report.html."""

from __future__ import annotations

import csv
import hashlib
import json
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fieldmark
from fieldmark.runtime.bundle import GRAPH, Bundle
from fieldmark.runtime.cache import atomic_write
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.results import Evaluation, Skipped

if TYPE_CHECKING:
    from fieldmark.runtime.catalog import Catalog
    from fieldmark.train.settings import Settings
    from fieldmark.train.trained import Trained

NOTES, CURVE, OUT_OF_FOLD = "run.json", "curve.csv", "out_of_fold.parquet"
PROTOTYPES = "prototypes.csv"
VERSIONS = ("numpy", "pillow", "openvino", "onnxruntime", "torch", "timm")


def begin(out: Path, settings: Settings) -> None:
    """Find out before the work, not after it, that nothing can be written; clear what a killed run left.

    The first notes say that a run was begun here, so that it may be resumed or written over.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for draft in out.glob(".model-*"):
            shutil.rmtree(draft, ignore_errors=True)
        write_notes(out, {"command": sys.argv, "seed": settings.seed, "settings": asdict(settings)})
    except OSError as error:
        raise FieldmarkError(
            f"cannot write to {out}: {error.strerror or error}; choose another --out"
        ) from error


def write_notes(out: Path, details: Mapping[str, Any]) -> None:
    """Write run.json, whole."""
    with atomic_write(out / NOTES) as file:
        file.write_text(json.dumps(details, indent=2, ensure_ascii=False), encoding="utf-8")


def write_skipped(path: Path, skipped: list[Skipped]) -> None:
    """One row a photo that was left out: path, reason."""
    with path.open("w", encoding="utf-8", newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows((item.path, item.reason) for item in skipped)


def versions() -> dict[str, str]:
    """Versions of what a result may depend on."""
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


def data_hash(content: Mapping[str, str]) -> str:
    """One SHA-256 for a set of photos. content: path -> content hash."""
    return hashlib.sha256("\n".join(sorted(content.values())).encode()).hexdigest()


def write_training(out: Path, trained: Trained) -> None:
    """Write what training by steps adds: curve.csv, what prototypes are and, after cross-validation,
    out_of_fold.parquet."""
    for name, rows in ((CURVE, trained.curve), (PROTOTYPES, trained.prototypes)):
        if rows:
            columns = dict.fromkeys(column for row in rows for column in row)
            with (out / name).open("w", encoding="utf-8", newline="", errors="surrogateescape") as file:
                writer = csv.DictWriter(file, list(columns))
                writer.writeheader()
                writer.writerows(rows)
    if trained.out_of_fold is not None:
        import pyarrow.parquet as pq

        pq.write_table(trained.out_of_fold.predictions, out / OUT_OF_FOLD, compression="zstd")


def _plan(trained: Trained) -> list[str]:
    """The plan of a training by steps, in words."""
    if not trained.chosen.get("plan"):
        return []
    from fieldmark.train.plan.plan import Plan

    told = trained.chosen["plan"]
    plan = Plan.model_validate({name: told[name] for name in Plan.model_fields if name in told})
    return [line for line in (plan.why, *plan.describe(), trained.chosen.get("imbalance", "")) if line]


def write_run_report(
    out: Path,
    catalog: Catalog,
    trained: Trained,
    result: Evaluation | None,
    judged: Evaluation,
    details: Mapping[str, Any],
    skipped: list[Skipped],
) -> None:
    """Write report.html. judged: by `Trained.judged`."""
    from fieldmark.explain.attention import in_middles
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
        judged=trained.out_of_fold or judged,
        how="out of fold" if trained.out_of_fold else trained.judged.how,
        training={
            "curve": trained.curve,
            "chosen": trained.chosen,
            "mode": trained.mode,
            "plan": _plan(trained),
        },
        folds=trained.cross_validation,
        settings={
            "backbone": trained.settings.backbone,
            "method": trained.graph.method,
            "scales (px)": " and ".join(map(str, trained.graph.scales)),
            "engine": trained.engine,
            "seed": trained.settings.seed,
            "temperature": round(trained.head.temperature, 4),
            "model size (MB)": round((out / "model" / GRAPH).stat().st_size / 1e6, 1),
            "versions": details["versions"],
        },
        data=data,
        skipped=skipped,
        warnings=details["warnings"],
        train_examples=examples,
        prototypes=trained.prototypes,
        look=partial(in_middles, Bundle(out / "model")),
        seconds={"training": summary["seconds"], "evaluation": summary["seconds_evaluate"] or 0.0},
    )
