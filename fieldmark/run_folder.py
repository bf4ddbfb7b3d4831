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
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fieldmark
from fieldmark.runtime.bundle import GRAPH
from fieldmark.runtime.cache import atomic_write
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.results import Evaluation, Skipped

if TYPE_CHECKING:
    from fieldmark.runtime.catalog import Catalog
    from fieldmark.train.settings import Settings
    from fieldmark.train.trained import Trained

NOTES = "run.json"
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


def write_run_report(
    out: Path,
    catalog: Catalog,
    trained: Trained,
    result: Evaluation | None,
    out_of_fold: Evaluation,
    details: Mapping[str, Any],
    skipped: list[Skipped],
) -> None:
    """Write report.html."""
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
            "temperature": round(trained.head.temperature, 4),
            "model size (MB)": round((out / "model" / GRAPH).stat().st_size / 1e6, 1),
            "versions": details["versions"],
        },
        data=data,
        skipped=skipped,
        warnings=details["warnings"],
        train_examples=examples,
        seconds={"training": summary["seconds"], "evaluation": summary["seconds_evaluate"] or 0.0},
    )
