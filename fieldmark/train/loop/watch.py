"""The time that a run may take, and what it took."""

from __future__ import annotations

import math
import time


class Watch:
    """The time that was used: seconds since the run began, those before a kill included.

    started: ``time.time()`` when this process began; before: seconds used by earlier ones; deadline: seconds at
    which the last step must be done (none: no budget).
    """

    def __init__(self, started: float, before: float = 0.0, deadline: float | None = None):
        self.started, self.before, self.deadline = started, before, deadline

    @property
    def spent(self) -> float:
        return time.time() - self.started + self.before

    @property
    def left(self) -> float:
        return math.inf if self.deadline is None else self.deadline - self.spent
