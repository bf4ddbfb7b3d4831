"""Plans from epochs or a budget: with speeds that are given here, so that no clock decides."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fieldmark.nn.chain import chain
from fieldmark.runtime.errors import FieldmarkError, UsageError
from fieldmark.train.bundle import finish
from fieldmark.train.loop.watch import Watch
from fieldmark.train.plan import measure
from fieldmark.train.plan import plan as plans
from fieldmark.train.plan import planner as planners
from fieldmark.train.plan.measure import Gauge, Speed, shares
from fieldmark.train.plan.planner import Planner
from fieldmark.train.plan.stretch import ease, smaller
from fieldmark.train.recipe import Recipe

Make = Callable[..., Any]


def planner(gpu: bool = False, world: int = 1, rate: float = 100.0, **options: Any) -> Planner:
    return Planner(Recipe(**options), 5, Watch(time.time()), rate, gpu=gpu, workers=1, world=world)


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Callable[[Speed], None]:
    """Set how quick this machine is taken to be: behind a late cut the steps are four times as quick."""

    def given(early: Speed, entries: int = 1000) -> None:
        def speed(self: Gauge, network: Any, cut: str, heads: bool = False) -> Speed:
            names = [place.name for place in measure.places(network) if place.share <= planners.FRESH]
            late = cut and cut not in names
            if late:
                return Speed(early.lower / 2, early.step * 4, entries)
            return Speed(early.lower if cut else math.inf, early.step, entries)

        monkeypatch.setattr(Gauge, "speed", speed)

    return given


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


def test_the_cut(network: Make) -> None:
    net = network()
    early, late = (planner(epochs=1)._cut(net, most) for most in (planners.FRESH, planners.KEPT))
    places = net.usable()
    part = dict(
        zip([link.name for link in net.links], shares(net.links, torch.zeros(1, 3, 32, 32)), strict=True)
    )
    assert early in ("", *places) and late in places
    assert part[late] <= planners.KEPT and (not early or part[early] <= planners.FRESH)
    after = places.index(late) + 1
    assert after == len(places) or part[places[after]] > planners.KEPT, "as late as may be"
    assert (
        planner(epochs=1, cut="none")._cut(net, 0.9) == ""
        and planner(epochs=1, cut="x")._cut(net, 0.9) == "x"
    )
    assert planner(gpu=True, epochs=1)._cut(net, 0.9) == "", "a GPU learns all of it"
    assert planner(epochs=1)._cut(network("test_vit", size=160), 0.9) == ""


def test_shares_are_multiplications() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1))
    x = torch.zeros(1, 3, 10, 10)
    first, last = 3 * 4, 4 * 8 * 9
    expected = [first / (first + last), first / (first + last), 1.0]
    assert shares(chain(model, x, model), x) == pytest.approx(expected)


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
    assert one.deadline(200, 50) == pytest.approx(98 - plans.WRITING - 250 / 50)
    assert one.deadline(10**6, 0) == pytest.approx(98 - plans.WRITING - 300 / 50), "few are looked at again"
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


def test_a_short_budget_keeps_views_as_maps(network: Make, speeds: Make) -> None:
    speeds(Speed(100.0, 50.0))
    plan = planner(budget=100.0).plan(network(), 1000, 10, "all")
    phase = plan.phases[0]
    assert phase.cut and 1 <= phase.views <= planners.MOST_VIEWS and "kept as maps" in plan.why
    left = 100 * 0.98 - plans.WRITING - 1010 / 100
    used = phase.steps * phase.batch / 200 + phase.views * 1000 / 50 + plan.warm_views * 1000 / 100
    assert used == pytest.approx(left, rel=0.2) and phase.views * 1000 / 50 <= max(20, planners.MAKING * left)
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


# -- several phases


def seconds_of(plan: Any, speed: Speed, number: int) -> float:
    phase = plan.phases[number]
    return speed.seconds(plan.photos, phase.steps * phase.batch / plan.photos, phase.views)


def test_kept_maps_and_then_new_views(network: Make, speeds: Make) -> None:
    speeds(Speed(100.0, 50.0))
    one = planner(budget=900.0).plan(network(), 1000, 10, "all")
    assert len(one.phases) == 1 and one.phases[0].views == 0, "one phase where nobody asks for more"
    for asked in ("two", "auto"):
        plan = planner(budget=900.0, phases=asked).plan(network(), 1000, 10, "all")
        first, then = plan.phases
        places = network().usable()
        assert first.views >= 1 and then.views == 0 and "kept as maps at first" in plan.why
        assert not then.cut or places.index(first.cut) > places.index(then.cut)
        left = 900 * 0.98 - plans.WRITING - 1010 / 100
        trained = left - plan.warm_views * 1000 / 100
        assert seconds_of(plan, Speed(50.0, 200.0), 0) == pytest.approx(planners.FIRST * trained, rel=0.05)
        later = Speed(100.0 if then.cut else math.inf, 50.0)
        assert seconds_of(plan, later, 1) == pytest.approx((1 - planners.FIRST) * trained, rel=0.05)
        ends = left - (1 - planners.FIRST) * trained
        assert first.until == pytest.approx(ends / left, rel=0.02) and then.until == 1.0
        assert (first.own, then.own, first.heads, then.heads) == (0, 0, False, False)


def test_two_phases_only_where_there_is_time_for_both(network: Make, speeds: Make) -> None:
    speeds(Speed(100.0, 50.0))
    budget = 220.0  # about six epochs of new views, and so less than six behind kept maps
    plan = planner(budget=budget, phases="auto").plan(network(), 1000, 10, "all")
    assert len(plan.phases) == 1
    assert len(planner(budget=budget, phases="two").plan(network(), 1000, 10, "all").phases) == 2, (
        "as asked for"
    )
    short = planner(budget=60.0, phases="two").plan(network(), 1000, 10, "all")
    assert len(short.phases) == 1 and short.phases[0].views, "less than 1.5 epochs would be left"
    assert len(planner(budget=900.0, phases="two", cache_gb=0).plan(network(), 1000, 10, "all").phases) == 1
    assert len(planner(budget=900.0, phases="two", cut="none").plan(network(), 1000, 10, "all").phases) == 1
    vit = planner(budget=900.0, phases="two").plan(network("test_vit", size=160), 1000, 10, "all")
    assert len(vit.phases) == 1, "it cannot be cut"


@pytest.mark.parametrize(("epochs", "first"), [(1, None), (2, 1), (8, 2), (40, 10)])
def test_two_phases_by_epochs(network: Make, epochs: int, first: int | None) -> None:
    plan = planner(epochs=epochs, phases="two", batch=10).plan(network(), 50, 6, "all")
    assert sum(phase.steps for phase in plan.phases) == 5 * epochs
    assert all(phase.until == 1.0 for phase in plan.phases)
    if first is None:
        assert len(plan.phases) == 1
    else:
        assert plan.phases[0].steps == 5 * first
        assert plan.phases[0].views == min(first, planners.MOST_VIEWS) and not plan.phases[1].views
    assert len(planner(epochs=epochs, phases="auto").plan(network(), 50, 6, "all").phases) == 1, (
        "no clock, no trial"
    )


def test_new_layers_learn_alone_at_first(network: Make, speeds: Make) -> None:
    speeds(Speed(400.0, 50.0))
    net = network()
    plan = planner(budget=600.0).plan(net, 1000, 10, "all", True)
    heads, main = plan.phases
    assert plan.warm_views == 0 and heads.heads and not main.heads
    assert heads.cut == net.usable()[-1] and heads.views == planners.HEADS_VIEWS
    left = 600 * 0.98 - plans.WRITING - 1010 / 100
    assert seconds_of(plan, Speed(200.0, 200.0), 0) == pytest.approx(planners.HEADS * left, rel=0.1)
    assert heads.until == pytest.approx(planners.HEADS, rel=0.1) and main.until == 1.0
    assert "new views fit" in plan.why
    assert heads.judge_every == heads.steps, "there is nothing to choose among"
    assert "the method's own layers" in plan.describe()[0]
    assert heads.fresh and not main.fresh, "where the head is fitted to them first"


def test_new_layers_do_not_learn_alone_where_there_is_no_time_for_an_epoch(
    network: Make, speeds: Make
) -> None:
    speeds(Speed(math.inf, 50.0), entries=0)
    net = network(pixels=True)
    (main,) = planner(budget=100.0).plan(net, 1000, 10, "all", True).phases
    assert main.fresh and not main.heads
    assert [one.fresh for one in planner(budget=100.0).plan(net, 1000, 10, "all").phases] == [False]


def test_new_layers_by_epochs(network: Make) -> None:
    net = network()
    plan = planner(epochs=10, batch=10).plan(net, 50, 6, "all", True)
    heads, main = plan.phases
    assert (heads.steps, main.steps) == (5 * planners.HEADS_EPOCHS, 50) and plan.warm_views == 0
    assert heads.heads and heads.cut == net.usable()[-1] and heads.views == planners.HEADS_VIEWS
    assert plan.why == "10 epochs, as asked for, after 4 of the new layers alone"
    vit = planner(epochs=10, batch=10).plan(network("test_vit", size=160), 50, 6, "all", True).phases[0]
    assert vit.heads and vit.cut == "" and vit.views == 0, "no maps are worth keeping there"
    none = planner(epochs=10, batch=10, cache_gb=0).plan(net, 50, 6, "all", True).phases[0]
    assert none.heads and none.cut == "" and none.views == 0, "there is no room"


def test_methods_that_look_at_photos_keep_no_maps(network: Make, speeds: Make) -> None:
    speeds(Speed(math.inf, 50.0), entries=0)
    net = network(pixels=True)
    for options in ({"epochs": 6}, {"budget": 100.0}, {"budget": 600.0, "phases": "two"}):
        plan = planner(**options).plan(net, 400, 10, "all", True)
        assert [phase.views for phase in plan.phases] == [0, 0]
        assert plan.phases[0].heads and plan.phases[0].cut == ""
        assert plan.phases[1].cut in ("", *(link.name for link in net.links))


@pytest.mark.parametrize("options", [{"epochs": 10, "batch": 10}, {"budget": 600.0}])
def test_phases_of_the_methods_own(
    network: Make, speeds: Make, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    speeds(Speed(100.0, 50.0))
    net = network()
    whole = planner(**options).plan(net, 1000, 10, "all", True).phases
    monkeypatch.setattr(type(net.method), "phases", (0.7, 0.3))
    plan = planner(**options).plan(net, 1000, 10, "all", True)
    assert [(phase.heads, phase.own) for phase in plan.phases] == [(True, 0), (False, 0), (False, 1)]
    _, first, second = plan.phases
    assert (first.cut, first.views, first.size) == (second.cut, second.views, second.size)
    assert first.steps == pytest.approx(0.7 * whole[1].steps, rel=0.1)
    assert second.steps == pytest.approx(0.3 * whole[1].steps, rel=0.1)
    if "budget" in options:
        assert plan.phases[0].until < first.until < second.until == 1.0
        assert first.until == pytest.approx(plan.phases[0].until + 0.7 * (1 - plan.phases[0].until), rel=0.05)


def test_methods_with_several_views_keep_as_many(
    network: Make, speeds: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network()
    monkeypatch.setattr(type(net.method), "views", 3)
    plan = planner(epochs=2, phases="two").plan(net, 50, 6, "all", True)
    assert [phase.views for phase in plan.phases] == [3, 3, 0]
    tight = 50 * measure.entries(net, net.usable()[-1], 32) * 2 * 2.5 / 1e9
    assert planner(epochs=2, cache_gb=tight).plan(net, 50, 6, "all", True).phases[0].views == 0
    assert Speed(50.0, 100.0, views=3).seconds(200, 2) == 200 * (2 / 100 + 2 * 3 / 50)


# -- growing views


def test_views_that_grow(network: Make, speeds: Make) -> None:
    speeds(Speed(100.0, 50.0))
    net = network(size=64)
    plan = planner(epochs=9, batch=10, train_size=128, progressive=True).plan(net, 50, 6, "all")
    phase = plan.phases[0]
    assert phase.rising == ((96, 4),), "0.7 and 0.85 of 128 px are 96 px both"
    plan = planner(epochs=9, batch=10, train_size=224, progressive=True).plan(net, 50, 6, "all")
    assert plan.phases[0].rising == ((160, 3), (192, 6)) and plan.phases[0].size == 224
    assert plan.describe()[0].startswith("1.") and "at 160, then 192, then 224 px" in plan.describe()[0]
    few = planner(epochs=1, train_size=224, progressive=True).plan(net, 50, 6, "all").phases[0]
    assert few.rising == (), "at least an epoch has the full size"
    assert planner(epochs=9, train_size=224).plan(net, 50, 6, "all").phases[0].rising == ()
    timed = [
        planner(budget=900.0, train_size=224, progressive=on, cut="none").plan(net, 1000, 10, "all").phases[0]
        for on in (False, True)
    ]
    cost = ((160 / 224) ** 2 + (192 / 224) ** 2 + 1) / 3
    assert ease(smaller(224), 224) == pytest.approx(cost)
    assert timed[1].steps == pytest.approx(timed[0].steps / cost, rel=0.02)


def test_kept_maps_do_not_grow(network: Make, speeds: Make) -> None:
    speeds(Speed(100.0, 50.0))
    plan = planner(budget=100.0, progressive=True, train_size=96).plan(network(), 1000, 10, "all")
    assert plan.phases[0].views and plan.phases[0].rising == () and "kept maps have one size" in plan.why
    both = planner(epochs=8, progressive=True, train_size=96, phases="two").plan(network(), 50, 10, "all")
    assert both.phases[0].rising == () and both.phases[1].rising


def test_backbones_of_one_size_are_refused(network: Make) -> None:
    with pytest.raises(
        UsageError, match="--progressive needs a backbone for any size: test_vit takes 160 px"
    ):
        planner(epochs=2, progressive=True).plan(network("test_vit", size=160), 50, 6, "all")


# -- GPUs


@pytest.mark.parametrize(
    ("rates", "photos", "expected"),
    [
        ({32: 100, 64: 180, 128: 300, 256: 400}, 10_000, 256),
        ({32: 100, 64: 180, 128: 184, 256: 400}, 10_000, 64),
        ({32: 100, 64: 180, 128: None, 256: 400}, 10_000, 64),
        ({32: None}, 10_000, 32),
        ({32: 100, 64: 180, 128: 300, 256: 400}, 1100, 64),
        ({32: 100, 64: 180}, 200, 32),
    ],
)
def test_the_batch_is_found_on_gpus(
    network: Make,
    speeds: Make,
    monkeypatch: pytest.MonkeyPatch,
    rates: dict[int, float | None],
    photos: int,
    expected: int,
) -> None:
    def rate(net: Any, x: torch.Tensor, *_: Any) -> float:
        found = rates[len(x)]
        if found is None:
            raise torch.OutOfMemoryError
        return found

    monkeypatch.setattr(measure, "rate", rate)
    speeds(Speed(math.inf, 5000.0))
    more = {"gpu": True, "budget": 120.0, "compile": "no", "rate": 1e4}
    assert planner(**more).plan(network(), photos, 10, "all").phases[0].batch == expected
    assert planner(**more, batch=48).plan(network(), photos, 10, "all").phases[0].batch == 48
    timeless = planner(gpu=True, epochs=3).plan(network(), photos, 10, "all")
    assert timeless.phases[0].batch == planners.BATCH_GPU, "no clock decides where bits count"
    shared = planner(**more, world=2)
    monkeypatch.setattr(measure, "rate", lambda net, x, *_: rate(net, torch.cat([x, x])))
    assert shared.plan(network(), photos, 10, "all").phases[0].batch == expected


@pytest.mark.parametrize(
    ("budget", "quicker", "expected"), [(900.0, 1.1, True), (900.0, 1.02, False), (200.0, 9.0, False)]
)
def test_compiled_where_it_pays(
    network: Make,
    speeds: Make,
    monkeypatch: pytest.MonkeyPatch,
    budget: float,
    quicker: float,
    expected: bool,
) -> None:
    rates = iter([100.0, 100.0 * quicker])
    monkeypatch.setattr(measure, "rate", lambda *_: next(rates))
    monkeypatch.setattr(measure, "compile_step", lambda *_: "")
    clock = iter([0.0, 30.0])
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    speeds(Speed(math.inf, 100.0))
    plan = planner(gpu=True, budget=budget, batch=8).plan(network(), 1000, 10, "all")
    assert plan.compile is expected
    assert ("compiled steps save" in plan.why) == (budget > planners.LONG)


def test_when_nothing_is_compiled(network: Make, speeds: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "rate", lambda *_: 100.0)
    monkeypatch.setattr(measure, "compile_step", lambda *_: "the steps are not compiled: no compiler")
    speeds(Speed(math.inf, 100.0))
    common = (network(), 1000, 10, "all")
    failed = planner(gpu=True, budget=900.0, batch=8).plan(*common)
    assert not failed.compile and failed.why.endswith("; the steps are not compiled: no compiler")
    monkeypatch.setattr(measure, "compile_step", lambda *_: pytest.fail("tried"))
    assert not planner(gpu=True, epochs=3).plan(*common).compile, "bits do not depend on the clock"
    assert not planner(budget=900.0).plan(*common).compile, "on CPUs only if asked for"
    assert not planner(gpu=True, budget=900.0, batch=8, compile="no").plan(*common).compile
    growing = {"train_size": 96, "progressive": True}
    assert not planner(gpu=True, budget=900.0, batch=8, **growing).plan(*common).compile
    assert planner(epochs=3, compile="yes").plan(*common).compile


# -- what is measured


def test_places_are_looked_for_once(network: Make, speeds: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    net, asked = network(), []
    real = measure.places
    monkeypatch.setattr(measure, "places", lambda one: asked.append(1) or real(one))
    places = real(net)

    def speed(self: Gauge, network: Any, cut: str, heads: bool = False) -> Speed:
        return Speed(100.0, 50.0, 1000)

    monkeypatch.setattr(Gauge, "speed", speed)
    planner(budget=900.0, phases="two").plan(net, 1000, 10, "all", True)
    assert len(asked) == 1 and [place.name for place in places] == net.usable()


def state(net: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.module.state_dict().items()}


def test_measuring_leaves_the_network_as_it_was(network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.01)
    net, x = network(), torch.randn(2, 3, 32, 32)
    net.method.head = nn.Sequential(nn.BatchNorm1d(net.head.in_features), net.head)  # it learns statistics
    before, gauge = state(net), Gauge(2, 1)
    gauge.size = 32
    speed = gauge.speed(net, net.usable()[1])
    assert speed.lower > 0 and speed.step > 0 and speed.entries == net.open(net.usable()[1])(x)[0].numel()
    net.close()
    assert gauge.speed(net, "").lower == math.inf
    assert gauge.speed(net, net.usable()[1], heads=True).step > 0
    after = state(net)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None and p.requires_grad for p in net.method.backbone.parameters() if p.ndim > 1)
