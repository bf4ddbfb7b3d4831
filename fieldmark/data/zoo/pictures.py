"""Arrays of pixels as a photo set on disk: PNG files and a table."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fieldmark.runtime.errors import FieldmarkError, UsageError


def write_pictures(
    root: str | Path,
    parts: Mapping[str, tuple[np.ndarray, np.ndarray]],
    names: Sequence[str],
    *,
    per_class: int = 0,
    ranks: Mapping[str, Sequence[str]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``root/SPLIT/CLASS/NUMBER.png`` without loss, and ``root/metadata.csv`` when all photos are there.

    parts: split -> (pictures [N, H, W] grey or [N, H, W, 3] RGB, uint8; class numbers [N]). names: of the
    classes. per_class: only the first so many photos of each class in each split (0: all). ranks: column ->
    name for each class. NUMBER is the photo's place in its published file. Raises FieldmarkError where the
    folder cannot be written, UsageError for a negative ``per_class``.
    """
    if per_class < 0:
        raise UsageError(f"per_class is {per_class}: it is a number of photos, or 0 for all")
    root = Path(root)
    ranks = ranks or {}
    chosen = {split: _first(labels, per_class) for split, (_, labels) in parts.items()}
    total, done = sum(len(rows) for rows in chosen.values()), 0
    folders = [re.sub(r"[^\w .()-]", "-", name) for name in names]
    try:
        lines: list[tuple[str, ...]] = []
        for split, (pictures, labels) in parts.items():
            for label in np.unique(labels):
                (root / split / folders[label]).mkdir(parents=True, exist_ok=True)
            for row in chosen[split].tolist():
                label = int(labels[row])
                name = f"{split}/{folders[label]}/{row:05d}.png"
                Image.fromarray(pictures[row]).save(root / name)
                lines.append((name, names[label], split, *(rank[label] for rank in ranks.values())))
                done += 1
                if progress:
                    progress(done, total)
        with (root / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("file_name", "label", "split", *ranks), *lines])
    except OSError as error:
        raise FieldmarkError(f"photos cannot be written to {root}: {error.strerror or error}") from error
    return root


def _first(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Rows of the first ``per_class`` photos of each class, in their order; 0: all rows."""
    if not per_class:
        return np.arange(len(labels))
    kept = [np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(kept)) if kept else np.arange(0)
