"""Plans of several phases, of new layers that learn alone at first, and of views that grow."""

from __future__ import annotations

import math
from typing import Any

import pytest
from planning import Make, planner

from fieldmark.runtime.errors import UsageError
from fieldmark.train.plan import cuts
from fieldmark.train.plan import plan as plans
from fieldmark.train.plan import planner as planners
from fieldmark.train.plan.measure import Speed
from fieldmark.train.plan.stretch import ease, smaller

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
    tight = 50 * cuts.entries(net, net.usable()[-1], 32) * 2 * 2.5 / 1e9
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
