"""What is told while a network trains: lines for people, numbers for loggers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fieldmark.train.loop.telling import Teller, line


class Logger:
    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.rows: list[Any] = []

    def step(self, number: int, values: dict[str, float]) -> None:
        self.steps.append((number, values))

    def evaluation(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


def loop(number: int) -> Any:
    return SimpleNamespace(
        plan=SimpleNamespace(phases=[SimpleNamespace(steps=10), SimpleNamespace(steps=20)]),
        number=number,
        stepper=SimpleNamespace(optimizer=SimpleNamespace(param_groups=[{"lr": 0.5}]), running={"loss": 2.0}),
        best=SimpleNamespace(rows=[{"held_out_accuracy": 0.5}, {"held_out_accuracy": 1.0}]),
    )


def test_what_is_told() -> None:
    told: list[Any] = []
    logger = Logger()
    teller = Teller(lambda *at: told.append(at), logger)  # type: ignore[arg-type]
    teller("note", "a note")
    assert told == [("", 0, None, "a note")], "before there is a loop"
    teller.loop = loop(1)
    teller("step", 3, 20, 42.4)
    assert told[1] == ("training", 3, 20, "42 photos/s, held-out 100.0% \u2581\u2588")
    assert logger.steps == [(13, {"loss": 2.0, "lr": 0.5, "photos_per_second": 42.4})]
    teller("curve", {"step": 4, "epoch": 1.0})
    assert logger.rows == [{"step": 14, "epoch": 1.0}], "steps go on from phase to phase"


def test_bars() -> None:
    assert line(1.0, [0.0, 0.5, 0.75, 1.0]).split()[-1] == "\u2581\u2581\u2584\u2588"
    assert len(line(1.0, [0.9] * 40).split()[-1]) == 16
