"""What a training tells: a line on the screen, and numbers to the loggers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fieldmark.train import loggers
from fieldmark.train.loop.loop import Loop

BARS = "▁▂▃▄▅▆▇█"
#: Looks at the held-out photos that the line shows.
LOOKS = 16


class Teller:
    """What a `Loop` calls to tell of its steps, rows of its curve, and notes.

    report: (what, done, total, more) for the screen; logger: of numbers; loop: the one that runs.
    """

    def __init__(self, report: Callable[..., None], logger: loggers.Logger = loggers.NOTHING):
        self.report, self.logger = report, logger
        self.loop: Loop | None = None

    def __call__(self, kind: str, *values: Any) -> None:
        """kind: "note" (text), "curve" (row) or "step" (done, total, photos a second)."""
        if kind == "note":
            self.report("", 0, None, values[0])
            return
        loop = self.loop
        assert loop is not None
        before = sum(phase.steps for phase in loop.plan.phases[: loop.number])
        if kind == "curve":
            self.logger.evaluation({**values[0], "step": before + values[0]["step"]})
            return
        done, total, speed = values
        rate = loop.stepper.optimizer.param_groups[0]["lr"]
        self.logger.step(before + done, {**loop.stepper.running, "lr": rate, "photos_per_second": speed})
        accuracy = [row["held_out_accuracy"] for row in loop.best.rows]
        self.report("training", done, total, line(speed, accuracy))


def line(speed: float, accuracy: list[float]) -> str:
    """Photos a second, the share of held-out photos that is right, and its course: bars from a half up."""
    bars = "".join(BARS[int(7.99 * max(0.0, a - 0.5) * 2)] for a in accuracy[-LOOKS:])
    return f"{speed:.0f} photos/s, held-out {accuracy[-1]:.1%} {bars}"
