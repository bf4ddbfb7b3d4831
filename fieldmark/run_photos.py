"""The photos of a training run: which ones are learned, in which groups, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fieldmark.data import duplicates
from fieldmark.data import split as splitting
from fieldmark.runtime import image
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError, ImageError
from fieldmark.runtime.machine import cores
from fieldmark.runtime.stream import ordered_map
from fieldmark.train.settings import Settings


def learned(
    source: Any, catalog: Catalog, settings: Settings, progress: Callable[..., None]
) -> tuple[Catalog, Catalog, np.ndarray]:
    """The catalog with its split; its train and val photos [N], by content; and their groups [N]."""
    if not catalog.has_split:
        catalog = splitting.assign(
            catalog,
            seed=settings.seed,
            workers=settings.workers,
            progress=_adding(progress, "reading photos", len(catalog)),
        )
    chosen = catalog.of_split("train", "val")
    chosen = chosen.select([label is not None for label in chosen.labels])
    check(chosen, f"{source} (train and val{_lost(catalog)})")
    prints = duplicates.fingerprints(chosen.paths, settings.workers)
    named = chosen.column("group") if "group" in chosen.table.column_names else None
    # By content, so that the same photos give the same model whatever their names and order.
    order = np.argsort(prints.content, kind="stable")
    return catalog, chosen.select(order), duplicates.groups(prints, named)[order]


def splits_of(catalog: Catalog, content: dict[str, str]) -> dict[str, str]:
    """Content hash -> split; content: path -> hash. A copy in train and in test counts as trained on."""
    split_of = dict(zip(catalog.paths, catalog.splits, strict=True))
    splits: dict[str, str] = {}
    for path in reversed(catalog.paths):
        if path in content and split_of[path] and splits.get(content[path]) not in ("train", "val"):
            splits[content[path]] = split_of[path]  # type: ignore[assignment]
    return splits


def check(catalog: Catalog, source: Any) -> None:
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


def contradictions(catalog: Catalog, content: dict[str, str]) -> list[str]:
    """A warning where equal photos have different labels. content: path -> hash."""
    labels: dict[str, dict[str, str]] = {}
    for path, label in zip(catalog.paths, catalog.labels, strict=True):
        if label is not None and path in content:
            labels.setdefault(content[path], {}).setdefault(label, path)
    found = [one for one in labels.values() if len(one) > 1]
    if not found:
        return []
    example = " and ".join(f"{path} ({label})" for label, path in [*found[0].items()][:2])
    what = "1 photo is" if len(found) == 1 else f"{len(found)} photos are"
    return [f"{what} there with several labels, such as {example}: remove the wrong ones"]


def hashes(paths: list[str], workers: int | None) -> dict[str, str]:
    """Content hashes of the photos that can be read."""

    def one(path: str) -> str:
        try:
            return image.content_hash(image.read(path))
        except ImageError:
            return ""

    hashed = zip(paths, ordered_map(one, paths, workers or cores(), 64), strict=True)
    return {path: name for path, name in hashed if name}


def ranks(catalog: Catalog, classes: list[str]) -> dict[str, dict[str, str | None]]:
    """Coarser ranks of each class, as far as the catalog's columns give them."""
    answer = {}
    for rank in catalog.ranks():
        values = dict(zip(catalog.labels, catalog.column(rank), strict=True))
        answer[rank] = {name: None if values.get(name) is None else str(values[name]) for name in classes}
    return answer
