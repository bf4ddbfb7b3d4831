"""Splits and folds: stratified by class, grouped, seeded.

Both go the same way. Groups of several photos are dealt first, the largest first, each to the part that
lacks its classes most. Then the single photos of every class fill up what the parts still lack, in an order
drawn by the seed; the remainders of the division are carried from class to class, so that the parts keep
their shares over many small classes too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fieldmark.data import duplicates
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.results import Skipped

_PARTS = ("train", "val", "test")


def assign(
    catalog: Catalog,
    *,
    seed: int = 0,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Catalog:
    """The catalog with a split. One that has a split already (even in part, or without val) stays as it is.

    Every photo is read once: those that cannot be are dropped and listed in ``skipped``. Photos with equal
    bytes, near-duplicates and photos with the same ``group`` get the same split. Every class keeps at least
    one photo in train. Photos without a label among labelled ones can only teach: they go to train, or where photos
    of their group are. The same photos, labels and seed give the same split, whatever their order or file
    names.

    ``fractions``: shares of train, val, test (sum 1). ``progress`` is told how many more photos are done.
    Raises FieldmarkError where no photo can be read.
    """
    shares = np.asarray(fractions, float)
    if shares.shape != (3,) or (shares < 0).any() or shares[0] <= 0 or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"fractions must be three shares of train, val, test with sum 1, not {fractions}")
    if catalog.has_split:
        return catalog
    paths = catalog.paths
    prints = duplicates.fingerprints(paths, workers, progress)
    readable = prints.readable
    skipped = [
        Skipped(path, error) for path, error in zip(paths, prints.errors, strict=True) if error is not None
    ]
    if not readable.any():
        why = f" ({skipped[0].path}: {skipped[0].reason})" if skipped else ""
        raise FieldmarkError(f"none of the {len(paths)} photos can be read{why}")
    extra = catalog.column("group") if "group" in catalog.table.column_names else None
    groups = duplicates.groups(prints, extra)[readable]
    labels = np.array([label or "" for label in catalog.labels], dtype=object)[readable]
    named = labels != "" if (labels != "").any() else np.ones(len(labels), bool)
    keys = _keys(prints.content[readable], seed)
    part = np.zeros(len(labels), np.int64)
    part[named] = _with_train(labels[named], groups[named], shares / shares.sum(), keys[named])
    of = dict(zip(groups[named].tolist(), part[named].tolist(), strict=True))
    part[~named] = [of.get(group, 0) for group in groups[~named].tolist()]
    kept = catalog.select(readable).with_column("split", np.array(_PARTS, dtype=object)[part])
    return Catalog(kept.table, catalog.root, [*catalog.skipped, *skipped])


def folds(labels: np.ndarray, groups: np.ndarray | None = None, k: int = 5, seed: int = 0) -> np.ndarray:
    """Fold numbers [N], 0 to k-1: every class spread evenly, no group in two folds.

    ``labels`` [N] of any kind; ``groups`` [N] of any kind, None: every photo by itself. A class with fewer
    than k groups misses some folds. Deterministic by ``seed``.
    """
    labels = np.asarray(labels)
    if k < 2:
        raise ValueError("k must be at least 2")
    keys = np.random.default_rng(seed).integers(0, 2**63, len(labels), dtype=np.uint64)
    return _deal(labels, groups, np.full(k, 1 / k), keys)


def _keys(content: np.ndarray, seed: int) -> np.ndarray:
    """A random number a photo, drawn from its bytes and the seed (splitmix64; Steele, Lea, Flood 2014)."""
    mixed = np.array([int(name[:16], 16) for name in content.tolist()], np.uint64)
    with np.errstate(over="ignore"):
        mixed += np.uint64(seed % 2**64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _deal(labels: np.ndarray, groups: np.ndarray | None, shares: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Part numbers [N] with ``shares`` [P] of every class; groups stay whole; ``keys`` [N] decide."""
    part = np.zeros(len(labels), np.int64)
    classes, label = np.unique(labels, return_inverse=True)
    lacking = np.bincount(label, minlength=len(classes))[:, None] * shares  # [C,P] photos
    alone = np.ones(len(labels), bool)
    if groups is not None and len(labels):
        group = np.unique(np.asarray(groups), return_inverse=True)[1]
        alone = np.bincount(group)[group] == 1
        _deal_groups(part, np.flatnonzero(~alone), label, group, keys, lacking, shares)
    rows = np.flatnonzero(alone)
    rows = rows[np.lexsort((keys[rows], label[rows]))]
    counts = _whole(lacking, np.bincount(label[rows], minlength=len(classes)), shares)
    part[rows] = np.repeat(np.tile(np.arange(len(shares)), len(classes)), counts.ravel())
    return part


def _deal_groups(
    part: np.ndarray,
    rows: np.ndarray,
    label: np.ndarray,
    group: np.ndarray,
    keys: np.ndarray,
    lacking: np.ndarray,
    shares: np.ndarray,
) -> None:
    """Deal ``rows`` by whole groups, largest first, into ``part``; ``lacking`` is brought up to date.

    A group goes where it lowers the squared distance from the wanted counts most: where its photos' classes
    are lacking most, each class weighing alike; among equals where photos are lacking most altogether.
    """
    if not len(rows):
        return
    rows = rows[np.argsort(group[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(group[rows], prepend=-1))
    sizes = np.diff(starts, append=len(rows))
    order = np.lexsort((np.minimum.reduceat(keys[rows], starts), -sizes))
    weight = 1 / lacking.sum(1)
    total = lacking.sum(0)
    for start, size in zip(starts[order].tolist(), sizes[order].tolist(), strict=True):
        members = rows[start : start + size]
        kinds = label[members]
        gain = weight[kinds] @ lacking[kinds]
        best = np.flatnonzero((gain >= gain.max() - 1e-9) & (shares > 0))
        to = int(best[np.argmax(total[best])])
        part[members] = to
        total[to] -= size
        np.subtract.at(lacking[:, to], kinds, 1)


def _whole(lacking: np.ndarray, counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Whole numbers [C,P] near ``lacking`` [C,P] with the row sums ``counts`` [C].

    Each class gets its share rounded down or up. What rounding owes to a part is carried to the next classes.
    """
    wanted = np.maximum(lacking, 0)
    empty = wanted.sum(1) <= 0
    wanted[empty] = shares
    wanted *= (counts / wanted.sum(1))[:, None]
    floor = np.floor(wanted + 1e-9)
    left = (counts - floor.sum(1)).round().astype(int)
    rest = wanted - floor
    whole = floor.astype(np.int64)
    owed = np.zeros(len(shares))
    for row in np.flatnonzero(counts).tolist():
        more = rest[row] + owed
        if left[row]:
            open_ = np.where(rest[row] > 1e-9, more, -np.inf)
            up = np.argsort(-open_, kind="stable")[: left[row]]
            whole[row, up] += 1
            more[up] -= 1
        owed = more
    return whole


def _with_train(labels: np.ndarray, groups: np.ndarray, shares: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Part numbers [N] (see _deal), where every class has a photo in part 0."""
    _, label, count = np.unique(labels, return_inverse=True, return_counts=True)
    size = np.bincount(groups)[groups]
    part = np.zeros(len(labels), np.int64)
    free = (count[label] > 1) | (size > 1)  # a class of one photo has no choice
    part[free] = _deal(labels[free], groups[free], shares, keys[free])
    trained = np.zeros(len(count), bool)
    trained[label[part == 0]] = True
    for missing in np.flatnonzero(~trained).tolist():
        rows = np.flatnonzero(label == missing)
        if (part[rows] != 0).all():  # give the smallest of its groups
            part[groups == groups[rows[np.lexsort((keys[rows], size[rows]))[0]]]] = 0
    return part
