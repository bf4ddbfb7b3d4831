"""Photos of which a coarser group is known, but not the class: what they teach the methods that use ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fieldmark.methods.task import Task, group_numbers
from fieldmark.nn.tree import Tree
from fieldmark.runtime.results import Skipped

#: Rank -> class -> the name of its group, finest rank first.
Ranks = Mapping[str, Mapping[str, str | None]]


@dataclass(frozen=True)
class Coarse:
    """M such photos.

    paths, content (hashes), groups: as of `Looked`; ranks: rank -> [M] names of their groups (None: not known), finest
    rank first.
    """

    paths: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    groups: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    ranks: Mapping[str, Sequence[str | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: np.ndarray) -> Coarse:
        """Some of them [m]."""
        return Coarse(
            [self.paths[i] for i in rows],
            [self.content[i] for i in rows],
            self.groups[rows],
            {rank: [names[i] for i in rows] for rank, names in self.ranks.items()},
        )

    def without(self, groups: np.ndarray) -> Coarse:
        """Those that are in none of these groups."""
        return self.select(np.flatnonzero(~np.isin(self.groups, groups)))

    def taught(self, classes: Sequence[str], ranks: Ranks, held: np.ndarray) -> Taught:
        """What they teach of these classes. held: groups of the photos that judge: nothing is learned from what is
        like them."""
        labels, names = self._labels(classes, ranks)
        alike = np.isin(self.groups, held)
        good = (labels >= 0) & ~alike
        rows, left = np.flatnonzero(good), []
        for row in np.flatnonzero(~good).tolist():
            rank, name = self.known(row)
            why = "it is too much like a photo that judges" if alike[row] else "no labelled photo is of that"
            left.append(Skipped(self.paths[row], f"no label, only {rank} {name!r}: {why}"))
        count = Counter(names[row] for row in rows)
        why = ", ".join(f"{count[rank]} by {rank}" for rank in ranks if rank in count)
        return Taught(
            self.select(rows), labels[rows], left, why and f"photos without a label teach too: {why}"
        )

    def known(self, row: int) -> tuple[str, str]:
        """The finest rank that is known of a photo, and its group there."""
        return next((rank, name) for rank, names in self.ranks.items() if (name := names[row]) is not None)

    def _labels(self, classes: Sequence[str], ranks: Ranks) -> tuple[np.ndarray, list[str]]:
        """Numbers [M] of the finest nodes known (`Tree.labels`), and the ranks that these are of."""
        task = Task.of(classes, ranks)
        if not task.ranks or not len(self):
            return np.full(len(self), -1), [""] * len(self)
        tree = Tree(task.classes, [groups for _, groups in task.ranks])
        numbers = []
        for rank, _ in task.ranks:
            number = group_numbers(classes, ranks[rank])
            numbers.append([number.get(name or "", -1) for name in self.ranks.get(rank, [None] * len(self))])
        labels = np.array(tree.labels(numbers))
        ends = np.cumsum(tree.sizes[::-1])  # of the classes' numbers, of the finest rank's, …
        names = [name for name, _ in task.ranks]
        return labels, [names[at - 1] for at in np.searchsorted(ends, labels, side="right")]


@dataclass(frozen=True)
class Taught:
    """Photos that teach by a coarser group. labels: [m] numbers of its nodes (`fieldmark.nn.tree`), from C on; left:
    photos that teach nothing, and why; why: a line for the user ("": there are none)."""

    photos: Coarse
    labels: np.ndarray
    left: list[Skipped]
    why: str
