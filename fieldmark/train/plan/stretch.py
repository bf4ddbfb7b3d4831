"""Phases to be, while a plan is made."""

from __future__ import annotations

from typing import NamedTuple

#: Sides of growing views, as shares of the last: each has as many epochs as the full size.
RISING = (0.7, 0.85)


class Stretch(NamedTuple):
    """A phase to be: fields as in `Phase`. seconds: of all of it; a_step: of one step; 0 where no clock decides; looks:
    at the held-out photos on the way."""

    cut: str
    views: int
    epochs: float
    seconds: float = 0.0
    a_step: float = 0.0
    heads: bool = False
    own: int = 0
    looks: int = 8

    def rising(self, sides: list[int]) -> tuple[tuple[int, int], ...]:
        """(side, epoch) of smaller views, each until this epoch; one epoch at least has the full size. Kept maps have
        one size, and so have all phases but the first of a method's own."""
        if self.views or self.heads or self.own:
            return ()
        ends = [round(self.epochs * (number + 1) / (len(sides) + 1)) for number in range(len(sides))]
        found = {end: side for side, end in zip(sides, ends, strict=True) if 0 < end <= self.epochs - 1}
        return tuple((side, end) for end, side in found.items())


def split(stretches: list[Stretch], shares: tuple[float, ...]) -> list[Stretch]:
    """The last of them in as many as the method has phases of its own. shares: of `Learner.phases`."""
    *before, last = stretches
    whole = sum(shares)
    return [
        *before,
        *(
            last._replace(epochs=last.epochs * share / whole, seconds=last.seconds * share / whole, own=own)
            for own, share in enumerate(shares)
        ),
    ]


def smaller(size: int) -> list[int]:
    """Sides of growing views before they have ``size`` pixels."""
    sides = {round32(share * size) for share in RISING}
    return sorted(side for side in sides if side < size)


def ease(sides: list[int], size: int) -> float:
    """What an epoch takes on average where views grow, compared with one at full size."""
    return sum((side / size) ** 2 for side in [*sides, size]) / (len(sides) + 1)


def round32(side: float) -> int:
    """The nearest multiple of 32 pixels."""
    return max(32, round(side / 32) * 32)
