"""When a phase ends: Ctrl-C, patience, and budgets that are used up and no more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import Killed, killed_at

from fieldmark.train.loop import checkpoint
from fieldmark.train.loop import watch as watches
from fieldmark.train.loop.best import Score
from fieldmark.train.loop.watch import Watch

Make = Callable[..., Any]


def test_ctrl_c_ends_with_the_best_so_far(loop: Make, tmp_path: Path) -> None:
    def tell(kind: str, *values: Any) -> None:
        if kind == "step" and values[0] == 5:
            raise KeyboardInterrupt

    one = loop(tmp_path, tell=tell)
    ended = one.run()
    assert ended.stopped == "interrupted" and ended.photos == 40
    assert ended.best.rows[-1]["step"] == 5, "the last weights are judged, too"
    assert one.judge.score() == ended.best.score


def test_ctrl_c_in_the_last_look_keeps_what_was_learned(
    loop: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = loop(tmp_path)

    def settle(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(one, "_settle", settle)
    ended = one.run()
    assert ended.stopped == "interrupted" and ended.best.rows[-1]["step"] == one.step > 0
    assert one.judge.score() == ended.best.score


def test_patience(loop: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.5, 0.6, 0.6, 0.5, 0.7, *[0.1] * 9])
    one = loop(tmp_path, judge_every=1, patience=3)
    monkeypatch.setattr(one.judge, "score", lambda: Score(next(scores), 1.0))
    ended = one.run()
    assert ended.stopped == "no better for a while" and one.step == 7 and ended.best.score.accuracy == 0.7


class Clock:
    """A clock that only training moves: so many seconds a step."""

    def __init__(self, one: Any, seconds: Callable[[int], float]) -> None:
        self.now, self.rates = 0.0, []
        real = one.stepper.shared

        def shared(x: torch.Tensor, y: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
            self.rates.append(
                one.stepper.optimizer.param_groups[0]["lr"] / one.stepper.optimizer.param_groups[0]["peak"]
            )
            self.now += seconds(one.step)
            return real(x, y)

        one.stepper.shared = shared

    def time(self) -> float:
        return self.now

    perf_counter = time


@pytest.mark.parametrize(
    ("planned", "seconds"),
    [
        (30, lambda _: 1.0),
        (12, lambda _: 1.0),
        (90, lambda _: 1.0),
        (30, lambda step: 1.0 if step < 10 else 1.3),
    ],
    ids=["right", "planned too few", "planned too many", "the machine slows down"],
)
def test_a_budget_is_used_up_and_the_rate_falls_to_zero(
    loop: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned: int, seconds: Callable[[int], float]
) -> None:
    watch = Watch(0.0, deadline=30.0)
    one = loop(tmp_path, watch=watch, steps=planned, judge_every=100, save_every=3)
    clock = Clock(one, seconds)
    monkeypatch.setattr(watches, "time", clock)
    ended = one.run()
    assert 27 <= clock.now <= 31.3, "used up, and overshot by no more than a step"
    assert clock.rates[-1] < 0.05, (ended.stopped, clock.rates[-5:])
    top = clock.rates.index(max(clock.rates))
    assert top < 8 and clock.rates[top:] == sorted(clock.rates[top:], reverse=True), "it only falls"


def test_looks_at_held_out_photos_have_their_time(
    loop: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of a second, looks of three: the last look, and those by which it is settled what is kept, fit in."""
    one = loop(tmp_path, watch=Watch(0.0, deadline=40.0), steps=60, judge_every=8, save_every=4)
    clock, real, looks = Clock(one, lambda _: 1.0), one.judge.score, []

    def score() -> Any:
        clock.now += 3.0
        looks.append(clock.now)
        return real()

    monkeypatch.setattr(one.judge, "score", score)
    monkeypatch.setattr(watches, "time", clock)
    ended = one.run()
    assert one.looked == 3.0 and len(looks) > len(ended.best.rows), "it was settled, too"
    assert 34 <= clock.now <= 42, "used up, and not by looks that nobody planned"
    assert clock.rates[-1] < 0.1


def test_a_spent_budget_ends_before_the_next_step(
    loop: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(0.0, before=31.0, deadline=30.0)
    one = loop(tmp_path, watch=watch)
    monkeypatch.setattr(watches, "time", Clock(one, lambda _: 1.0))
    ended = one.run()
    assert ended.stopped == "the budget is spent" and ended.photos == 0 and len(ended.best.rows) == 1


def test_a_resumed_budget_counts_what_was_spent(
    loop: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = loop(tmp_path, tell=killed_at(8), watch=Watch(0.0, deadline=30.0), steps=30)
    monkeypatch.setattr(watches, "time", Clock(one, lambda _: 1.0))
    with pytest.raises(Killed):
        one.run()
    saved = checkpoint.newest(tmp_path / "phase-1")
    assert saved.step == 6 and saved.state["spent"] == 6.0
    watch = Watch(0.0, before=saved.state["spent"], deadline=30.0)
    other = loop(tmp_path, watch=watch, steps=30)
    monkeypatch.setattr(watches, "time", Clock(other, lambda _: 1.0))
    other.run(saved)
    assert 28 <= other.step <= 31 and 29 <= watch.spent <= 31


def test_the_watch() -> None:
    watch = Watch(time.time() - 5, before=10)
    assert 15 <= watch.spent < 15.5 and watch.left == math.inf
    watch.deadline = 20.0
    assert 4.5 < watch.left <= 5
