"""Plans of one phase, from epochs or a budget: speeds are given, so that no clock decides."""

from __future__ import annotations

import math
from typing import Any

import pytest
from planning import Make, planner

from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train.bundle import finish
from fieldmark.train.plan import plan as plans
from fieldmark.train.plan import planner as planners
from fieldmark.train.plan.measure import Speed


def test_epochs_as_asked_for(network: Make) -> None:
    plan = planner(epochs=4, batch=8, lr=1e-4, head_lr=1e-2).plan(network(), 50, 6, "balanced")
    phase = plan.phases[0]
    assert (plan.seed, plan.photos, plan.held_out, plan.sampler) == (5, 50, 6, "balanced")
    assert phase.steps == 4 * (50 // 8) and phase.batch == 8 and phase.views == 0
    assert phase.save_every == 50 // 8, "a checkpoint an epoch"
    assert phase.judge_every == math.ceil(24 / planners.LOOKS) and (phase.lr, phase.head_lr) == (1e-4, 1e-2)
    assert plan.warm_views == planners.WARM_VIEWS and plan.why == "4 epochs, as asked for"


def test_what_the_recipe_says_stands_in_the_plan(network: Make) -> None:
    given: dict[str, Any] = {
        "optimizer": "sgd",
        "momentum": 0.5,
        "weight_decay": 0.2,
        "layer_decay": 0.7,
        "average": 0.9,
        "clip": 3.0,
        "patience": 4,
        "on_nan": "skip",
    }
    plan = planner(epochs=1, **given).plan(network(), 50, 6, "all")
    assert {name: getattr(plan, name) for name in given} == given


def test_few_photos_are_one_batch(network: Make) -> None:
    phase = planner(epochs=3).plan(network(), 5, 2, "all").phases[0]
    assert phase.batch == 5 and phase.steps == 3
    shared = planner(epochs=3, world=2).plan(network(), 5, 2, "all").phases[0]
    assert shared.batch == 4, "the same for every process"


@pytest.mark.parametrize(("size", "expected"), [(320, 224), (64, 32), (32, 32), (448, 320)])
def test_views_are_smaller_than_photos(size: int, expected: int) -> None:
    class Fake:
        class method:
            class backbone:
                fixed = False

    Fake.size = size
    assert planner(epochs=1)._size(Fake) == expected
    assert planner(epochs=1, train_size=100)._size(Fake) == 100
    Fake.method.backbone.fixed = True
    assert planner(epochs=1)._size(Fake) == size


def test_the_deadline_leaves_time_to_end() -> None:
    one = planner(budget=100.0, rate=50.0)
    assert one.deadline(200, 50) == pytest.approx(98 - plans.WRITING - (50 + 200) / 50)
    assert one.deadline(10**6, 0) == pytest.approx(98 - plans.WRITING - 250 / 50), "few are looked at again"
    long = planner(budget=1000.0, rate=50.0)
    assert long.deadline(10**6, 0) == pytest.approx(980 - plans.WRITING - finish.KNOWN / 50)


def test_seconds_of_a_plan() -> None:
    speed = Speed(lower=50.0, step=100.0)
    assert speed.seconds(200, 3, 0) == pytest.approx(200 * 3 / 100 + 200 * 3 / 50)
    assert speed.seconds(200, 3, 2) == pytest.approx(200 * 3 / 100 + 200 * 2 / 50)


@pytest.mark.parametrize("budget", [1.0, 10.0, 15.0])
def test_a_budget_too_small(network: Make, speeds: Make, budget: float) -> None:
    speeds(Speed(1000.0, 1000.0))
    assert planner(budget=budget).plan(network(), 100, 10, "all") is None


@pytest.mark.parametrize("budget", [100.0, 150.0, 180.0])
def test_a_short_budget_keeps_views_as_maps(budget: float, network: Make, speeds: Make) -> None:
    """And learns from each of them more than once."""
    speeds(Speed(100.0, 50.0))
    plan = planner(budget=budget).plan(network(), 1000, 10, "all")
    phase = plan.phases[0]
    assert phase.cut and 1 <= phase.views <= planners.MOST_VIEWS and "kept as maps" in plan.why
    left = budget * 0.98 - plans.WRITING - 1010 / 100
    used = phase.steps * phase.batch / 200 + phase.views * 1000 / 50 + plan.warm_views * 1000 / 100
    assert used == pytest.approx(left, rel=0.2)
    epochs = phase.steps * phase.batch / 1000
    assert epochs >= planners.REPEATS * phase.views
    assert (phase.views + 1) * (1000 / 50 + planners.REPEATS * 1000 / 200) > 0.8 * left, (
        "one more does not fit"
    )
    assert phase.save_every == pytest.approx(planners.SAVE_SECONDS * 200 / phase.batch, abs=1)


def test_a_long_budget_sees_new_views(network: Make, speeds: Make) -> None:
    speeds(Speed(100.0, 50.0))
    plan = planner(budget=600.0).plan(network(), 1000, 10, "all")
    phase = plan.phases[0]
    assert phase.views == 0 and "new views fit" in plan.why
    epochs = phase.steps * phase.batch / 1000
    left = 588 - plans.WRITING - 1010 / 100 - plan.warm_views * 1000 / 100
    assert (
        epochs == pytest.approx(left / (1000 / 50 + 1000 / 100), rel=0.05) and epochs > planners.FEWEST_FRESH
    )


def test_held_out_photos_are_looked_at_as_often_as_there_is_time(network: Make, speeds: Make) -> None:
    """And the looks are part of the plan: more photos to look at leave fewer steps."""
    speeds(Speed(100.0, 50.0))
    few, many = (planner(budget=100.0, rate=1e6).plan(network(), 1000, held, "all") for held in (10, 1500))
    larger = (network().size / few.phases[0].size) ** 2
    for plan, held in ((few, 10), (many, 1500)):
        phase = plan.phases[0]
        looks, a_look = round(phase.steps / phase.judge_every), held * larger / (3 * 200)
        left = 100 * 0.98 - plans.WRITING
        assert looks == min(8, max(1, int(0.1 * left / a_look)))
        making = phase.views * 1000 / 50 + held * larger / 50
        assert phase.steps * phase.batch / 200 + making + (looks + 3) * a_look == pytest.approx(
            left, rel=0.05
        )
    assert planner(budget=100.0, rate=1e6).plan(network(), 1000, 20_000, "all") is None, "they take it all"


def test_no_room_for_maps_is_no_plan_for_a_short_budget(network: Make, speeds: Make) -> None:
    speeds(Speed(100.0, 50.0))
    assert planner(budget=100.0, cache_gb=0.0).plan(network(), 1000, 10, "all") is None
    few = planner(budget=100.0, cache_gb=0.0021).plan(network(), 1000, 10, "all")
    assert few.phases[0].views == 1, "2 MB a view"


def test_a_slow_machine_says_no(network: Make, speeds: Make) -> None:
    speeds(Speed(2.0, 1.0))
    assert planner(budget=60.0).plan(network(), 1000, 10, "all") is None


@pytest.mark.parametrize(("budget", "planned"), [(40.0, True), (20.0, False)])
def test_a_network_that_cannot_be_cut(network: Make, speeds: Make, budget: float, planned: bool) -> None:
    """It learns whole, on new views, where one and a half epochs fit."""
    speeds(Speed(math.inf, 50.0), entries=0)
    plan = planner(budget=budget, rate=1e6).plan(network("test_vit", size=160), 400, 10, "all")
    assert (plan is not None) == planned
    if plan is not None:
        assert plan.phases[0].cut == "" and plan.phases[0].views == 0
        assert 1.5 <= plan.phases[0].steps * plan.phases[0].batch / 400 < 6


def test_what_cannot_be_done_as_asked_is_told(network: Make) -> None:
    plan = planner(epochs=1, views="kept", cut="none").plan(network(), 100, 10, "all")
    assert "no maps can be kept here" in plan.why and not plan.phases[0].views
    plan = planner(epochs=1, phases="two").plan(network(), 100, 10, "all")
    assert "two phases have no room or time" in plan.why and len(plan.phases) == 1
    plan = planner(epochs=4, phases="two", views="kept").plan(network(), 100, 10, "all")
    assert plan.why == "4 epochs, as asked for" and len(plan.phases) == 2


def test_a_cut_that_there_is_not(network: Make) -> None:
    with pytest.raises(FieldmarkError, match="behind 'nowhere', only behind conv_stem") as caught:
        planner(epochs=1, cut="nowhere").plan(network(), 100, 10, "all")
    assert "\n" not in str(caught.value)


def test_a_cut_that_was_asked_for(network: Make, speeds: Make) -> None:
    speeds(Speed(100.0, 50.0))
    plan = planner(budget=200.0, cut="none").plan(network(), 400, 10, "all")
    assert plan.phases[0].cut == "" and plan.phases[0].views == 0
    assert planner(budget=30.0, cut="none").plan(network(), 4000, 10, "all") is None
