"""What a method is made for, and what a step of training gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Task:
    """The classes that are to be told apart.

    classes: C, how many; ranks: coarser groups of them, finest rank first, each a name and the number of every
    class's group at that rank [C] (-1: not known). No ranks: the classes have no tree. names: of the classes, where
    known: layers of a method keep them when the head is given other classes.
    """

    classes: int
    ranks: tuple[tuple[str, tuple[int, ...]], ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, classes: Sequence[str], ranks: Mapping[str, Mapping[str, str | None]] | None = None) -> Task:
        """From names. ranks: rank -> class -> its group's name, finest first; one that knows no class is left out."""
        found = []
        for rank, group_of in (ranks or {}).items():
            if number := group_numbers(classes, group_of):
                found.append((rank, tuple(number.get(group_of.get(one) or "", -1) for one in classes)))
        return cls(len(classes), tuple(found), tuple(classes))

    def to_dict(self) -> dict[str, Any]:
        """For a model folder."""
        ranks = [[name, list(groups)] for name, groups in self.ranks]
        return {"classes": self.classes, "ranks": ranks, "names": list(self.names)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        """What `to_dict` gave."""
        ranks = tuple((str(name), tuple(map(int, groups))) for name, groups in values.get("ranks", ()))
        return cls(int(values["classes"]), ranks, tuple(map(str, values.get("names", ()))))


def group_numbers(classes: Sequence[str], group_of: Mapping[str, str | None]) -> dict[str, int]:
    """The names of one rank's groups of these classes -> their numbers in a `Task`. group_of: class -> group."""
    names = sorted({name for one in classes if (name := group_of.get(one)) is not None})
    return {name: number for number, name in enumerate(names)}


@dataclass
class Batch:
    """What one step learns from.

    x: [V B, ...] images, or maps at the cut, view after view; targets: [B] class numbers or [B, C] shares;
    views: V, of each photo; turn: which of the method's `turns` this is; progress: 0 at the first step of the
    phase, 1 after the last; boxes: [V B, K, 5] of the things in each view, K the most of any photo: left, top, right
    and bottom as shares of its side, and the class number; NaN: no further box. None where the data has none; a view
    without any is not known to be empty.

    coarse: may there be photos of which only a coarser group is known? Methods that use ranks get such: numbers, and
    columns of shares, from C on are nodes of the tree above the classes, as `fieldmark.nn.tree` numbers them.
    """

    x: Tensor
    targets: Tensor
    views: int = 1
    turn: int = 0
    progress: float = 0.0
    boxes: Tensor | None = field(default=None)
    coarse: bool = False

    @property
    def labels(self) -> Tensor:
        """[B] class numbers: the largest share, where targets are mixed."""
        return self.targets if self.targets.ndim == 1 else self.targets.argmax(1)

    def known(self, classes: int) -> tuple[Tensor, Tensor]:
        """[B] bool, is the photo's class known? And the targets of those: numbers, or shares of the ``classes``."""
        targets = self.targets
        if targets.ndim == 1:
            known = targets < classes
            return known, targets[known]
        known = (targets[:, classes:] == 0).all(1)
        return known, targets[known, :classes]
