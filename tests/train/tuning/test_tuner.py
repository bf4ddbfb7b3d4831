"""Fine-tuning as a whole: who judges, never worse than instant mode, few photos, interrupts, and what it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train import processes
from fieldmark.train.held_out import hold_out
from fieldmark.train.loop.best import Score
from fieldmark.train.loop.stepper import Stepper
from fieldmark.train.loop.watch import Watch
from fieldmark.train.plan import measure
from fieldmark.train.plan.plan import PLAN, Plan
from fieldmark.train.recipe import Recipe
from fieldmark.train.tuning.material import Material
from fieldmark.train.tuning.tuner import Finetune

Make = Callable[..., Any]


def run(
    seen: SimpleNamespace, folder: Path, progress: Callable[..., None] = lambda *_: None, **recipe: Any
) -> Any:
    given = {"epochs": 2, "batch": 8, **({} if "budget" not in recipe else {"epochs": None})}
    own = Recipe(**{**given, **recipe})
    import time

    return Finetune(
        seen.instant, own, folder / "checkpoints", Watch(time.time()), progress, Accelerator(cpu=True)
    )


def fit(seen: SimpleNamespace, folder: Path, **more: Any) -> Any:
    held = hold_out(seen.looked, np.zeros(len(seen.looked.y), bool))
    return run(seen, folder, **more).fit(seen.looked, held)


# -- who judges


def some(*counts: int) -> SimpleNamespace:
    y = np.repeat(np.arange(len(counts)), counts)
    return SimpleNamespace(y=y, groups=np.arange(len(y)), classes=[str(i) for i in range(len(counts))])


def test_the_catalogs_own_if_they_show_every_class() -> None:
    looked = some(5, 5)
    val = np.zeros(10, bool)
    val[[1, 6, 7]] = True
    held = hold_out(looked, val)
    assert np.array_equal(held, val) and held is not val
    val[1] = False
    assert not np.array_equal(hold_out(looked, val), val), "one class is not shown"


def test_else_a_tenth_of_all_with_groups_whole() -> None:
    looked = some(40, 30, 30)
    looked.groups = np.arange(100) // 2
    held = hold_out(looked, np.zeros(100, bool))
    assert 8 <= held.sum() <= 12 and np.array_equal(held[::2], held[1::2])
    assert np.bincount(looked.y[held]).min() >= 2, "of every class"


def test_every_class_keeps_a_photo_to_learn_from() -> None:
    for counts in ((1, 1), (2, 2), (1, 2, 3), (3, 30), (2,) * 12):
        looked = some(*counts)
        held = hold_out(looked, np.zeros(len(looked.y), bool))
        assert np.bincount(looked.y[~held], minlength=len(counts)).min() >= 1
    val = np.array([True, False, True, True])
    assert hold_out(some(2, 2), val).tolist() == [True, False, False, False], (
        "its only photos are learned from"
    )


# -- what it ends with


def test_never_worse_than_instant(look: Make, tmp_path: Path) -> None:
    """A rate that destroys the network: the instant model is given, and a line says why."""
    seen = look(12)
    trained = fit(
        seen, tmp_path, optimizer="sgd", lr=30.0, head_lr=30.0, clip=0.0, average=0.0, on_nan="skip"
    )
    told = trained.chosen
    if trained.mode == "instant":
        assert told["held_out_top1"] <= told["held_out_top1_instant"]
        assert "fine-tuning was worse on held-out photos" in trained.warnings[-1]
        assert trained.judged.how == "out of fold" and len(trained.known.y) == 48
    else:
        assert told["held_out_top1"] >= told["held_out_top1_instant"] - 2 / told["held_out"]
    assert told["epochs"] > 0 and told["plan"]["phases"] and trained.curve


ALL = Score(0.5, 1.0, (True,) * 100 + (False,) * 100, (1.0,) * 200)
ONE_LESS = Score(0.495, 1.0, (True,) * 99 + (False,) * 101, (1.0,) * 200)


@pytest.mark.parametrize(
    ("reached", "photos", "again", "worse"),
    [
        (Score(0.4, 0.1), 84, None, True),
        (Score(0.5, 3.0), 84, None, False),
        (ONE_LESS, 84, None, True),
        (ONE_LESS, 300, None, False),  # after five epochs a photo of two hundred decides nothing
        (Score(0.4, 0.1), 300, None, True),
        (Score(0.6, 1.0), 300, Score(0.4, 1.0), True),  # the second look of --tta made it worse
        (Score(0.6, 1.0), 300, ONE_LESS, False),
    ],
)
def test_the_instant_model_is_the_measure(
    look: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reached: Score,
    photos: int,
    again: Score | None,
    worse: bool,
) -> None:
    from fieldmark.train.loop.best import Best
    from fieldmark.train.loop.loop import Outcome
    from fieldmark.train.tuning import tuner

    seen, made = look(12), []
    monkeypatch.setattr(Finetune, "_warm_up", lambda *_: None)
    monkeypatch.setattr(tuner, "finished", lambda *_: made.append(1) or seen.instant.learn(seen.looked))
    scores = iter([ALL, again])
    monkeypatch.setattr(tuner.Score, "of", classmethod(lambda *_: next(scores)))
    best = Best(reached, rows=[{"step": 1}])
    monkeypatch.setattr(tuner.Course, "run", lambda *_: [Outcome(best, photos, 2.0, "done")])
    one = run(seen, tmp_path, tta=again is not None)
    trained = one.fit(seen.looked, hold_out(seen.looked, np.zeros(48, bool)))
    assert made == ([] if worse and again is None else [1]) and (one.method is None) == worse
    told, lines = trained.chosen, [line for line in trained.warnings if "was worse on held-out" in line]
    assert len(lines) == worse and all(("with --tta" in line) == (again is not None) for line in lines)
    assert (told["held_out_top1"], told["held_out_top1_instant"]) == ((again or reached).accuracy, 0.5)
    assert (
        told["photos_per_second"] == photos / 2
        and told["stopped"] == "done"
        and trained.curve == [{"step": 1}]
    )
    assert told["epochs"] == round(photos / (48 - told["held_out"]), 3)


def test_uneven_classes_weigh_the_same_where_weights_are_judged(look: Make, tmp_path: Path) -> None:
    for each, even in (((12,), False), ((12, 12, 12, 2), True)):
        seen = look(*each)
        folder = tmp_path / str(even)
        one = run(seen, folder)
        plan = one.fit(seen.looked, hold_out(seen.looked, np.zeros(len(seen.looked.y), bool))).chosen["plan"]
        assert plan["even"] == even


def test_all_phases_end_by_the_rule_that_decides_in_the_end(
    look: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Finetune, "_enough", lambda *_: lambda _, seen: asked.append(seen) or True)
    told = fit(look(12), tmp_path, phases="two", epochs=4).chosen
    first, second = dict.fromkeys(asked)  # each phase may try several mixtures
    assert 0 < first < second == asked[-1] == sum(one["steps"] * 8 for one in told["plan"]["phases"])


def test_it_trains_and_says_what_it_did(look: Make, tmp_path: Path) -> None:
    seen, told = look(12), []
    trained = fit(seen, tmp_path, progress=lambda *at: told.append(at))
    assert trained.mode == "finetune" and trained.chosen["stopped"] == "done"
    assert trained.chosen["held_out"] + 42 >= 46 and trained.chosen["resumed_at_step"] is None
    plan = Plan.read(tmp_path / "checkpoints")
    assert plan.model_dump(mode="json") == trained.chosen["plan"] and len(plan.data) == 64
    steps = [at for at in told if at[0] == "training"]
    total = plan.phases[0].steps
    assert [at[1] for at in steps] == list(range(1, total + 1)) and {at[2] for at in steps} == {total}
    assert "photos/s, held-out" in steps[-1][3]
    notes = [at[3] for at in told if at[0] == ""]
    assert notes[:2] == ["2 epochs, as asked for", plan.describe()[0]] and "photos a class" in notes[2]


def test_ctrl_c_gives_a_good_model(look: Make, tmp_path: Path) -> None:
    def progress(what: str, done: int, *_: object) -> None:
        if what == "training" and done == 4:
            raise KeyboardInterrupt

    trained = fit(look(12), tmp_path, progress=progress)
    assert trained.chosen["stopped"] == "interrupted"
    assert trained.chosen["epochs"] == pytest.approx(32 / (48 - trained.chosen["held_out"]), abs=1e-3)
    assert (
        trained.mode == "instant"
        or trained.chosen["held_out_top1"]
        >= trained.chosen["held_out_top1_instant"] - 2 / trained.chosen["held_out"]
    )


def test_ctrl_c_between_two_phases_keeps_what_was_learned(
    look: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fieldmark.train.tuning import course
    from fieldmark.train.tuning.phases import newest

    made: list[int] = []
    feed_of, seen = course.feed_of, look(12)

    def feed(network: Any, plan: Plan, number: int, *rest: Any, **more: Any) -> Any:
        feed = feed_of(network, plan, number, *rest, **more)
        made.append(number)
        if number == 1:  # the network is cut by now
            raise KeyboardInterrupt
        return feed

    monkeypatch.setattr(course, "feed_of", feed)
    trained = fit(seen, tmp_path, phases="two", epochs=4, floor=False)
    assert made == [0, 1] and trained.chosen["stopped"] == "interrupted" and trained.mode == "finetune"
    assert {row["phase"] for row in trained.curve} == {0}
    number, saved, _ = newest(tmp_path / "checkpoints")
    assert number == 1 and saved is None and trained.chosen["epochs"] > 0, "the first phase is done"
    assert trained.evaluation().top1 == pytest.approx(trained.chosen["held_out_top1"], abs=1e-6)


def test_ctrl_c_before_the_first_step_gives_the_instant_model(look: Make, tmp_path: Path) -> None:
    def progress(what: str, *_: object) -> None:
        if what == "warming up the head":
            raise KeyboardInterrupt

    trained = fit(look(12), tmp_path, progress=progress)
    assert trained.mode == "instant"
    assert "interrupted before the first step" in trained.warnings[-1]
    assert trained.chosen["stopped"] == "interrupted", "a fold that ends so is no fold"


@pytest.mark.parametrize("counts", [(2, 2), (3, 2, 3, 2), (1, 6, 6)])
def test_few_photos_train(look: Make, tmp_path: Path, counts: tuple[int, ...]) -> None:
    seen = look(*counts)
    trained = fit(seen, tmp_path, epochs=1)
    assert trained.classes == seen.looked.classes and len(trained.y) == sum(counts)
    assert trained.chosen["held_out"] >= 1 and np.isfinite(trained.head.weights).all()
    assert trained.evaluation().n >= 1
    if 1 in counts:
        assert any("one photo to learn from" in line for line in trained.warnings)


@pytest.mark.parametrize("counts", [(1,), (1, 2)])
def test_where_no_photo_can_judge_the_instant_model_is_given(
    look: Make, tmp_path: Path, counts: tuple[int, ...]
) -> None:
    trained = fit(look(*counts), tmp_path)
    assert trained.mode == "instant"
    assert trained.warnings[-1] == "too few photos for any to judge fine-tuning: this is the instant model"
    assert not (tmp_path / "checkpoints").exists()


def test_a_budget_too_small(look: Make, tmp_path: Path) -> None:
    trained = fit(look(12), tmp_path, budget=5.0)
    assert trained.mode == "instant" and len(trained.known.y) == 48, "of all photos"
    assert "the budget is too small for fine-tuning: this is the instant model (" in trained.warnings[-1]
    assert not (tmp_path / "checkpoints" / PLAN).exists()


# -- what it belongs to


def test_new_layers_begin_with_the_seeds_weights(look: Make, tmp_path: Path) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(int(torch.randint(1000, ())))  # whatever came before
        seen = look(12, seed=seed)
        material = Material.of(seen.looked, np.zeros(len(seen.looked.y), bool))
        network, _ = run(seen, tmp_path, loss="cross_entropy+0.1*cosine_margin")._network(material)
        return dict(network.module.named_parameters())

    one, same, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    differ = {name for name in one if not torch.equal(one[name], other[name])}
    assert any("projection" in name for name in differ) and any("criterion" in name for name in differ)


@pytest.mark.parametrize("change", ["photos", "labels", "held out", "backbone", "resize", "loss", "method"])
def test_a_killed_run_goes_on_only_with_the_same(
    look: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(Finetune, "_warm_up", killed)
    seen = look(12)
    looked, held = seen.looked, hold_out(seen.looked, np.zeros(48, bool))
    for _ in range(2):  # the same goes on
        with pytest.raises(Killed):
            run(seen, tmp_path).fit(looked, held)
    if change == "photos":
        looked.content[5] = "0" * 64
    elif change == "labels":
        looked.y[5] = (looked.y[5] + 1) % 4
    elif change == "held out":
        held = np.roll(held, 1)
    elif change == "backbone":
        looked = replace(looked, graph=replace(looked.graph, key="0" * 32))
    elif change == "resize":
        other = looked.graph.preprocess.model_copy(update={"resize": "pad"})
        looked = replace(looked, graph=replace(looked.graph, preprocess=other))
    elif change == "method":  # which begins with the same frozen graph
        seen.instant.settings = replace(seen.instant.settings, method="mc_loss")
    more = {"loss": "focal"} if change == "loss" else {}
    with pytest.raises(FieldmarkError) as caught:
        run(seen, tmp_path, **more).fit(looked, held)
    line = str(caught.value)
    what = "other photos, labels, backbone, size or preprocessing"
    what = "another method or other flags" if change in ("loss", "method") else what
    assert f"was begun with {what}" in line and "\n" not in line
    assert str(tmp_path) in line and "--overwrite" in line


def test_processes_that_see_other_checkpoints(
    look: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one went on after 12 seconds; this one finds nothing."""
    monkeypatch.setattr(processes, "agreed", lambda value: 12.0 if value is None else value)
    with pytest.raises(FieldmarkError, match=r"not all processes see .*checkpoints: share the folder"):
        fit(look(12), tmp_path)


def test_steps_in_bfloat16_where_the_plan_found_them_quicker(
    look: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a budget; the weights and the answers stay in single precision, and it is told."""
    seen, told, used = look(12), [], []
    monkeypatch.setattr(processes, "short_steps", lambda _: lambda: torch.autocast("cpu", torch.bfloat16))
    monkeypatch.setattr(measure, "PAYS", 0.0)
    held = hold_out(seen.looked, np.zeros(len(seen.looked.y), bool))
    one = run(seen, tmp_path, lambda *a: told.append(str(a)), budget=40.0, floor=False)

    def few(self: Stepper, good: bool) -> bool:
        used.append(self.accelerator.mixed_precision)
        if len(used) > 3:
            raise KeyboardInterrupt
        return good

    monkeypatch.setattr(Stepper, "_everywhere", few)
    trained = one.fit(seen.looked, held)
    assert trained.chosen["plan"]["bf16"] and "bfloat16" in "".join(told)
    assert used and set(used) == {"bf16"} and trained.mode == "finetune"
    assert {p.dtype for p in one.method.parameters()} == {torch.float32}
    assert processes.accelerator("no").mixed_precision == "no", "as it was, for what comes next"


def test_not_where_a_precision_was_asked_for_or_epochs(look: Make, tmp_path: Path) -> None:
    seen = look(12)
    asked = run(seen, tmp_path, budget=40.0, amp="no")
    assert asked._planner(10.0).gauge.other is None
    assert not fit(seen, tmp_path, epochs=1).chosen["plan"]["bf16"], "the same bits again"
