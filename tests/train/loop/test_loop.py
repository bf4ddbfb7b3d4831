"""The loop: the same bits whether killed or not, steps as by hand, photos in order, and what is kept in the end."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from killed import Killed, killed_at

from fieldmark.data.augment import Augment
from fieldmark.data.sampler import epoch_order
from fieldmark.train.loop import checkpoint
from fieldmark.train.loop import loop as loops
from fieldmark.train.loop.averages import between, learned, soup
from fieldmark.train.loop.best import Score
from fieldmark.train.loop.loop import SHARES

Make = Callable[..., Any]


def rows(best: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in best.rows]


KINDS: dict[str, dict[str, Any]] = {
    "fresh views": {},
    "kept maps": {"cut": True, "views": 2},
    "a cut, fresh views, mixed": {"cut": True, "augment": Augment(mixup=0.5, cutmix=0.5)},
    "sgd, balanced, a loss of the embedding": {
        "optimizer": "sgd",
        "sampler": "balanced",
        "layer_decay": 0.8,
        "net": {"loss": "cross_entropy+0.1*center", "rank": 3},
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1, 5, 8])
def test_killed_and_resumed_gives_the_same_bits(
    loop: Make, cut: SimpleNamespace, tmp_path: Path, kind: str, step: int
) -> None:
    options = dict(KINDS[kind])
    if options.pop("cut", False):
        options["cut"] = cut.name
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = loop(tmp_path / "a", **options)
    ended = whole.run()
    with pytest.raises(Killed):
        loop(tmp_path / "b", tell=killed_at(step), **options).run()
    saved = checkpoint.newest(tmp_path / "b" / "phase-1")
    assert step - 3 <= saved.step < step, "at most one interval is done again"
    other = loop(tmp_path / "b", **options)
    again = other.run(saved)
    assert again.best.score == ended.best.score and rows(again.best) == rows(ended.best)
    assert again.photos == ended.photos == 72 and again.stopped == ended.stopped == "done"
    for mine, theirs in (
        (learned(whole.module), learned(other.module)),
        (whole.average.state, other.average.state),
        (ended.best.state, again.best.state),
    ):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    files = [tmp_path / one / "phase-1/step-00000009/tensors.safetensors" for one in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes(), "weights, moments, averages, the best, the soup"


def test_killed_twice_and_a_damaged_checkpoint(loop: Make, tmp_path: Path) -> None:
    for one in "ab":
        (tmp_path / one).mkdir()
    loop(tmp_path / "a").run()
    folder = tmp_path / "b" / "phase-1"
    for step in (4, 7):
        with pytest.raises(Killed):
            loop(tmp_path / "b", tell=killed_at(step)).run(checkpoint.newest(folder))
    (folder / "step-00000006" / "tensors.safetensors").write_bytes(b"half")
    saved = checkpoint.newest(folder)
    assert saved.step == 3
    loop(tmp_path / "b").run(saved)
    files = [tmp_path / one / "phase-1/step-00000009/tensors.safetensors" for one in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_last_checkpoint_of_a_phase_ends_alike(loop: Make, tmp_path: Path) -> None:
    ended = loop(tmp_path).run()
    saved = checkpoint.newest(tmp_path / "phase-1")
    assert saved.step == 9
    again = loop(tmp_path).run(saved)
    assert again.stopped == "done" and rows(again.best) == rows(ended.best)
    assert all(torch.equal(again.best.state[name], value) for name, value in ended.best.state.items())


def test_one_step_by_hand(loop: Make, some: SimpleNamespace, tmp_path: Path) -> None:
    """The loop's first step is a plain step of PyTorch on the views of the first batch."""
    # Without decay the average is the weights.
    mine, hand = loop(tmp_path, steps=1, clip=0.5, average=0.0), loop(tmp_path / "other", steps=1)
    mine.run()
    order = epoch_order(some.labels, 0, 3)[:8]
    (x,) = hand.feed.train.batches([(order, 0)])
    torch.manual_seed(0)
    hand.module(x, torch.from_numpy(some.labels[order]))["loss"].backward()
    torch.nn.utils.clip_grad_norm_(hand.module.parameters(), 0.5)
    for group in hand.stepper.optimizer.param_groups:
        group["lr"] = group["peak"] * 0.01
    hand.stepper.optimizer.step()
    saved = mine.average.state
    for name, value in learned(hand.module).items():
        torch.testing.assert_close(saved[name], value, rtol=1e-5, atol=1e-7)


def test_batches_follow_the_orders_of_their_epochs(loop: Make, some: SimpleNamespace, tmp_path: Path) -> None:
    one = loop(tmp_path, sampler="balanced")
    orders = one.batches.orders(4)
    for step in range(4, 11):
        own, epoch = next(orders)
        assert epoch == step // 3
        expected = epoch_order(some.labels, epoch, 3, "balanced").reshape(3, 8)[step % 3]
        assert np.array_equal(own, expected)


def test_it_learns_and_leaves_the_best_weights(loop: Make, tmp_path: Path) -> None:
    told: list[tuple[Any, ...]] = []
    one = loop(tmp_path, tell=lambda *what: told.append(what), steps=30, judge_every=5, average=0.5)
    ended = one.run()
    assert ended.best.rows[0]["step"] == 0 and ended.best.rows[-1]["step"] == 30
    assert [row["step"] for row in ended.best.rows] == [0, 5, 10, 15, 20, 25, 30], "each judged once"
    assert (
        ended.best.rows[-1]["train_loss"] < 0.8 * math.log(4) and ended.best.rows[-1]["train_accuracy"] > 0.5
    )
    assert {"phase", "epoch", "lr", "held_out_accuracy", "held_out_loss"} <= ended.best.rows[3].keys()
    assert ended.best.rows[3]["epoch"] == 5.0 and ended.best.rows[0]["lr"] == 0.0
    assert one.judge.score() == ended.best.score, "the network has the weights that were scored"
    assert [what[1] for what in told if what[0] == "step"] == list(range(1, 31))
    assert [what[1]["step"] for what in told if what[0] == "curve"] == [0, 5, 10, 15, 20, 25, 30]
    assert one.module.training is True and ended.seconds > 0


def test_what_is_done_once_is_not_taken_for_a_look(
    loop: Make, cut: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look would else count for all that are still to come, and short budgets would end before a step."""
    one, order = loop(tmp_path, cut=cut.name, even=True), []
    maps = one.feed._held_maps

    def slowly(*at: int) -> Any:
        order.append("maps")
        time.sleep(0.5)
        return maps(*at)

    monkeypatch.setattr(one.feed, "_held_maps", slowly)
    one.best.start = learned(one.module)
    for _ in range(2):
        one._judge()
    assert order == ["maps"] and one.looked < 0.5 and one.watch.spent > 0.5
    assert one.judge.even and not loop(tmp_path).judge.even


@pytest.mark.parametrize("steps", [2, 6])
@pytest.mark.parametrize("judged", [True, False])
def test_the_last_weights_are_kept_where_answers_do_not_judge_them(
    loop: Make, tmp_path: Path, judged: bool, steps: int
) -> None:
    """As of a detector: though all photos were answered before the first step, and none later."""
    one = loop(tmp_path, steps=steps, judge_every=2, average=0.5)
    one.learner.judged = judged
    scores = [Score(1.0, 0.0)]
    one.judge.score = lambda: scores.pop() if scores else Score(0.0, 9.0)
    best = one.run().best
    expected = best.start if judged else soup(best.recent)
    assert best.state.keys() == expected.keys()
    assert all(torch.equal(best.state[name], expected[name]) for name in expected)
    assert any(not torch.equal(best.start[name], best.recent[-1][name]) for name in expected)


def test_what_is_not_good_enough_goes_less_far(loop: Make, tmp_path: Path) -> None:
    """From the first weights to the last; who says so hears how many photos were seen."""
    one, asked = loop(tmp_path, judge_every=2, average=0.5), []
    one.enough = lambda score, photos: asked.append(photos) or len(asked) == len(SHARES)
    one.judge.score = lambda: Score(0.5, 1.0)
    best = one.run().best
    assert asked == [72] * len(SHARES) and SHARES[-1] < 1
    expected = between(best.start, soup(best.recent), SHARES[-1])
    assert all(torch.equal(best.state[name], expected[name]) for name in expected)


def test_judging_changes_nothing(loop: Make, tmp_path: Path) -> None:
    often = loop(tmp_path / "a", judge_every=1)
    seldom = loop(tmp_path / "b", judge_every=9)
    often.run(), seldom.run()
    saved = [checkpoint.newest(tmp_path / one / "phase-1").tensors for one in "ab"]
    names = [name for name in saved[0] if name.startswith(("now.", "average.", "optimizer."))]
    assert names and all(torch.equal(saved[0][name], saved[1][name]) for name in names)


def test_waiting_for_photos_is_counted(loop: Make, tmp_path: Path) -> None:
    one = loop(tmp_path)
    real = one.feed.batches

    def slow(steps: Any) -> Any:
        for images in real(steps):
            time.sleep(0.05)
            yield images

    one.feed.batches = slow
    ended = one.run()
    assert 9 * 0.05 < one.batches.waited < ended.seconds


def test_large_checkpoints_are_far_apart(loop: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr(loops.checkpoint, "write", lambda folder, step, *_: written.append(step))
    loop(tmp_path).run()
    assert written == [0, 3, 6, 9]
    written.clear()
    monkeypatch.setattr(loops, "QUICK", -1.0)
    monkeypatch.setattr(loops, "APART", 1e9)
    loop(tmp_path).run()
    assert written == [0], "the next one is due in a long time"


def test_checkpoints_are_json_and_tensors(loop: Make, tmp_path: Path) -> None:
    loop(tmp_path).run()
    folder = tmp_path / "phase-1" / "step-00000009"
    state = json.loads((folder / "state.json").read_text())["state"]
    assert state["phase"] == 0 and state["total"] == 9 and len(state["best"]["rows"]) == 3
    assert state["progress"] == pytest.approx(1.0)


def test_the_average_begins_with_what_was_prepared(loop: Make, tmp_path: Path) -> None:
    """A method may change its weights when it has seen the photos: that is what the first look judges."""
    one = loop(tmp_path, steps=1)
    name = next(name for name, _ in one.module.named_parameters() if name.endswith("head.bias"))
    seen: list[int] = []

    def prepare(phase: int, photos: Any) -> None:
        seen.extend(len(labels) for _, labels in photos())
        with torch.no_grad():
            one.module.get_parameter(name).add_(5.0)

    one.learner.prepare = prepare
    before = one.average.state[name].clone()
    one.run()
    assert sum(seen) == len(one.labels)
    torch.testing.assert_close(one.best.start[name], before + 5, rtol=1e-3, atol=1e-3)
    assert (one.average.state[name] - before - 5).abs().max() < 1
