"""The photos of a training run: which ones are learned, in which groups, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldmark import methods
from fieldmark.data import duplicates
from fieldmark.data import split as splitting
from fieldmark.runtime import image
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError, ImageError
from fieldmark.runtime.machine import cores
from fieldmark.runtime.results import Skipped
from fieldmark.runtime.stream import ordered_map
from fieldmark.train.settings import Settings
from fieldmark.train.trained import Trained
from fieldmark.train.tuning.coarse import Coarse


@dataclass(frozen=True)
class Learned:
    """catalog: with its split; chosen: its train and val photos that have a class [N], by content; groups: [N], photos
    of one group stay together; coarse: its train photos of which only a coarser group is known, where the method uses
    them; tested: the content hashes of its test photos that can be read, by path (before the plan is made, so that a
    budget knows of it)."""

    catalog: Catalog
    chosen: Catalog
    groups: np.ndarray
    coarse: Coarse
    tested: dict[str, str]


def learned(source: Any, catalog: Catalog, settings: Settings, progress: Callable[..., None]) -> Learned:
    """Which photos are learned."""
    if not catalog.has_split:
        catalog = splitting.assign(
            catalog,
            seed=settings.seed,
            workers=settings.workers,
            progress=_adding(progress, "reading photos", len(catalog)),
        )
    chosen = catalog.of_split("train", "val")
    has_class = np.array([label is not None for label in chosen.labels])
    check(chosen.select(has_class), f"{source} (train and val{_lost(catalog)})")
    teaches = chosen.coarse & np.array([split == "train" for split in chosen.splits])
    if settings.mode != "finetune" or settings.method not in taught_by_ranks():
        teaches[:] = False
    chosen = chosen.select(has_class | teaches)
    prints = duplicates.fingerprints(chosen.paths, settings.workers)
    named = chosen.column("group") if "group" in chosen.table.column_names else None
    groups = duplicates.groups(prints, named)
    # By content, so that the same photos give the same model whatever their names and order.
    order = np.argsort(prints.content, kind="stable")
    is_coarse = teaches[has_class | teaches][order]
    coarse = order[is_coarse]
    bad = [Skipped(chosen.paths[row], why) for row in coarse if (why := prints.errors[row])]
    coarse = coarse[prints.readable[coarse]]
    own = chosen.select(coarse)
    return Learned(
        Catalog(catalog.table, catalog.root, [*catalog.skipped, *bad]),
        chosen.select(order[~is_coarse]),
        groups[order[~is_coarse]],
        Coarse(
            own.paths,
            prints.content[coarse].tolist(),
            groups[coarse],
            {rank: own.column(rank) for rank in chosen.ranks()},
        ),
        _hashes(catalog.of_split("test").paths, settings.workers),
    )


def taught_by_ranks() -> list[str]:
    """The methods that learn from photos of which only a coarser group is known."""
    return [card.name for card in methods.cards() if "ranks" in card.uses]


def waiting(catalog: Catalog, trained: Trained) -> tuple[list[Skipped], list[str]]:
    """Photos without a label that taught nothing: those that are not listed yet, and why; and a warning on all of
    them, where there are any."""
    learner = "instant mode" if trained.mode == "instant" else trained.settings.method
    able = learner in taught_by_ranks()
    listed = {one.path for one in (*catalog.skipped, *trained.skipped)}
    rows, paths = [row for row, label in enumerate(catalog.labels) if label is None], catalog.paths
    idle = catalog.select([row for row in rows if paths[row] not in trained.coarse])
    if not len(idle):
        return [], []
    ranks = {rank: idle.column(rank) for rank in catalog.ranks()}
    found = []
    for row, (path, split) in enumerate(zip(idle.paths, idle.splits, strict=True)):
        if path not in listed:
            known = [f"{rank} {names[row]!r}" for rank, names in ranks.items() if names[row] is not None]
            why = "no labelled photo is of that" if able else f"{learner} learns from classes only"
            why = "it teaches in train only" if able and split != "train" else why
            found.append(Skipped(path, f"no label, only {known[0]}: {why}" if known else "no label"))
    line = "skipped.csv says why"
    if not able:
        *others, last = sorted(taught_by_ranks())
        able_ones = f"{', '.join(others)} and {last}"
        line = f"{learner} learns from classes only ({able_ones} learn from coarser groups too)"
    return found, [f"{len(idle)} photos without a label teach nothing: {line}"]


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


def _hashes(paths: list[str], workers: int | None) -> dict[str, str]:
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
        pairs = zip(catalog.labels, catalog.column(rank), strict=True)
        values = {label: str(name) for label, name in pairs if name is not None}
        answer[rank] = {name: values.get(name) for name in classes}
    return answer
