"""Plans for GPUs: how large a batch is, and whether steps are compiled."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from planning import Make, planner

from fieldmark.train.plan import measure
from fieldmark.train.plan import planner as planners
from fieldmark.train.plan.measure import Speed


@pytest.mark.parametrize(
    ("rates", "photos", "expected"),
    [
        ({32: 100, 64: 180, 128: 300, 256: 400}, 10_000, 256),
        ({32: 100, 64: 180, 128: 184, 256: 400}, 10_000, 64),
        ({32: 100, 64: 180, 128: None, 256: 400}, 10_000, 64),
        ({32: None, 16: 50}, 10_000, 32),
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
