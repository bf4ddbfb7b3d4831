"""What is measured before a plan is made: steps as the loop takes them, and nothing is left of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from planning import Make
from torch import nn

from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train.plan import measure
from fieldmark.train.plan.cuts import places
from fieldmark.train.plan.measure import (
    Gauge,
    as_it_was,
    compile_step,
    fitting,
    rate,
    steps,
)


class Steps(nn.Module):
    """Notes how it is called."""

    def __init__(self, turns: int = 1, views: int = 1):
        super().__init__()
        self.weight, self.criterion = nn.Parameter(torch.ones(())), nn.Identity()
        self.register_buffer("seen", torch.zeros(()))
        self.method = type("Learner", (), {"turns": turns, "views": views, "dropped": lambda: None})
        self.calls: list[Any] = []

    def forward(self, x: torch.Tensor, targets: torch.Tensor, **more: Any) -> dict[str, torch.Tensor]:
        self.seen += 1
        self.calls.append((len(x), targets.tolist(), more))
        return {"loss": self.weight * x.mean()}


class Fake:
    def __init__(self, module: nn.Module, classes: int = 3):
        self.module, self.classes, self.frozen = module, classes, 0

    def freeze_statistics(self) -> None:
        self.frozen += 1


def test_steps_are_those_of_the_method() -> None:
    """All turns, with V views of each photo, and photos of one class beside those of others."""
    module = Steps(turns=2, views=3)
    network = Fake(module)
    with steps(network, torch.rand(27, 3, 4, 4), contextlib.nullcontext) as step:
        step()
    assert [(count, more["turn"]) for count, _, more in module.calls] == [(27, 0), (27, 1)]
    assert module.calls[0][1] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert module.weight.grad is None and float(module.seen) == 0 and network.frozen == 1 and module.training


def test_photos_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Steps(turns=2, views=3)
    ticks = iter([10.0, 11.0, 12.0, 14.0, 14.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(ticks))
    assert rate(Fake(module), torch.rand(27, 3, 4, 4), 3.5) == pytest.approx(27 / 4)
    assert len(module.calls) == 2 * 4, "the first pass does not count"


def test_steps_run_in_the_precision_of_training() -> None:
    entered = []

    @contextlib.contextmanager
    def autocast() -> Iterator[None]:
        entered.append(1)
        yield

    with steps(Fake(Steps(turns=2)), torch.rand(4, 3, 4, 4), autocast) as step:
        step()
    assert len(entered) == 2


class Short(Steps):
    """Short of memory: so many views are too many."""

    def __init__(self, most: int, error: BaseException, views: int = 1):
        super().__init__(views=views)
        self.most, self.error = most, error

    def forward(self, x: torch.Tensor, targets: torch.Tensor, **more: Any) -> dict[str, torch.Tensor]:
        losses = super().forward(x, targets, **more)
        if len(x) > self.most:
            raise self.error
        return losses


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), MemoryError()])
def test_what_fits_into_memory_is_measured(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """A batch that is too large is halved; all views of a photo stay together."""
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    module = Short(8, error, views=3)
    speed, photos = fitting(Fake(module), torch.rand(27, 3, 4, 4))
    assert photos == 2 and speed > 0 and {count for count, *_ in module.calls} == {27, 12, 6}
    assert float(module.seen) == 0 and module.weight.grad is None


@pytest.mark.parametrize(
    ("error", "raised", "line"),
    [
        (MemoryError(), FieldmarkError, "not enough memory for one photo at a time: give a smaller --size"),
        (RuntimeError("shapes do not fit"), RuntimeError, "shapes do not fit"),
    ],
)
def test_measuring_ends_where_no_photo_fits(error: Exception, raised: type[Exception], line: str) -> None:
    with pytest.raises(raised, match=line):
        fitting(Fake(Short(0, error)), torch.rand(4, 3, 4, 4))


def test_a_plan_is_made_with_what_fits(network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def small(_: Any, x: torch.Tensor, *__: Any) -> float:
        seen.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError
        return 10.0

    monkeypatch.setattr(measure, "rate", small)
    net, gauge = network(), Gauge(8, 1)
    gauge.size = 32
    assert gauge.largest(net, [8, 16]) == 8 and gauge.speed(net, "").step == 10.0
    monkeypatch.setattr(measure, "compile_step", lambda _, x, *__: seen.append(-len(x)) or "")
    assert not gauge.compiling(net, 100.0)[0], "as quick as before"
    assert seen == [8, 4, 2] * 3 + [-2, 2]


def test_planning_leaves_the_statistics_that_a_backbone_came_with(network: Make) -> None:
    """Batch norms that are no part of a convolution, too."""
    net = network("densenet121")
    before = state(net)
    assert any("running_mean" in name for name in before), "some are not folded"
    measure.slower(net)
    places(net)
    after = state(net)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("passes", "expected"), [(0, 1.0), (1, 1.0), (3, 3.0)])
def test_an_answer_costs_as_many_passes_as_the_method_takes(
    passes: int, expected: float, network: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, clock = network(), [0.0]

    def tick(*_: Any) -> None:
        clock[0] += 1.0

    net.method.backbone.register_forward_hook(tick)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(net.method, "describe", lambda x: [net.method.backbone(x) for _ in range(passes)])
    net.module.train()
    assert measure.slower(net) == expected and net.module.training


def test_views_count_in_the_speed(network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    net, seen = network(), []
    monkeypatch.setattr(type(net.method), "views", 3)
    monkeypatch.setattr(measure, "rate", lambda _, x, *__: seen.append(tuple(x.shape)) or 7.0)
    gauge = Gauge(4, 1, world=2)
    gauge.size = 32
    cut = net.usable()[1]
    speed = gauge.speed(net, cut)
    assert (
        speed.views == 3
        and speed.step == 14.0
        and seen == [(12, *net.open(cut)(torch.zeros(1, 3, 32, 32)).shape[1:])]
    )


def test_methods_that_look_at_photos_are_frozen_below_the_cut(
    network: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, learning = network(pixels=True), []

    def count(one: Any, x: torch.Tensor, *_: Any) -> float:
        assert x.shape == (4, 3, 32, 32)
        learning.append(sum(p.requires_grad for p in one.method.backbone.parameters()))
        return 1.0

    monkeypatch.setattr(measure, "rate", count)
    gauge = Gauge(4, 1)
    gauge.size = 32
    for cut, heads in (("", False), (net.links[1].name, False), ("", True)):
        assert gauge.speed(net, cut, heads).lower == float("inf")
    assert learning[0] > learning[1] > learning[2] == 0
    assert sum(p.requires_grad for p in net.method.backbone.parameters()) == learning[0], "all learn again"


def test_compiled_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    module, compiled = Steps(), []
    names = list(module.state_dict())

    def compile_(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        return lambda *a, **k: compiled.append(1) or function(*a, **k)

    monkeypatch.setattr(torch, "compile", compile_)
    x = torch.rand(8, 3, 4, 4)
    assert compile_step(Fake(module), x) == "" and compiled and list(module.state_dict()) == names
    module(x, torch.zeros(8))
    assert len(compiled) == 2
    as_it_was(module)
    module(x, torch.zeros(8))
    assert len(compiled) == 2


def test_compiling_that_fails_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler here\nand much more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    module = Steps()
    x = torch.rand(8, 3, 4, 4)
    assert compile_step(Fake(module), x) == "the steps are not compiled: no compiler here"
    assert module(x, torch.zeros(8))["loss"] > 0, "it runs as it is"


def state(net: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.module.state_dict().items()}


def test_centres_stay_while_speed_is_measured(network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """To move them, processes wait for each other, and only one of them measures."""
    net = network(loss="cross_entropy+0.1*center")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with measure.steps(net, torch.randn(4, 3, 32, 32), contextlib.nullcontext) as step:
        assert net.module.training and not net.module.criterion.training
        step()
    assert net.module.criterion.training


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


@pytest.mark.parametrize(("short", "taken"), [(11.0, False), (20.0, True)])
def test_another_precision_is_taken_where_it_pays(
    short: float, taken: bool, network: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, tried = network(), []
    gauge = Gauge(4, 1, other=contextlib.nullcontext)

    def rate(_: Any, x: torch.Tensor, seconds: float | None, autocast: Any) -> float:
        tried.append(autocast is gauge.other)
        return short if tried[-1] else 10.0

    gauge.autocast = lambda: contextlib.nullcontext()
    monkeypatch.setattr(measure, "rate", rate)
    gauge.size, other = 32, gauge.other
    assert gauge.speed(net, "").step == (short if taken else 10.0)
    assert gauge.changed == taken and (gauge.autocast is other) == taken and gauge.other is None
    gauge.speed(net, "")
    assert tried == [False, True, False], "it is tried once"
