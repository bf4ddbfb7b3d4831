"""Groups of parameters, optimisers by name, and the rate over time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fieldmark.runtime.errors import UsageError
from fieldmark.train.loop.optimizer import OPTIMIZERS, factor, groups, make, set_rate


def module() -> nn.ModuleDict:
    torch.manual_seed(0)
    model = nn.ModuleDict({"low": nn.Linear(2, 2), "high": nn.Linear(2, 2), "head": nn.Linear(2, 3)})
    model["low"].bias.requires_grad_(False)
    return model


DEPTH = {"low.weight": 2, "low.bias": 2, "high.weight": 1, "high.bias": 1}


def test_rates_by_depth_and_decay_by_shape() -> None:
    model = module()
    found = groups(model, DEPTH, lr=1e-3, head_lr=1e-2, layer_decay=0.5, weight_decay=0.1)
    told = {
        name: (group["lr"], group["weight_decay"])
        for name, parameter in model.named_parameters()
        for group in found
        if any(parameter is one for one in group["params"])
    }
    assert told == {
        "low.weight": (0.25e-3, 0.1),
        "high.weight": (0.5e-3, 0.1),
        "high.bias": (0.5e-3, 0.0),
        "head.weight": (1e-2, 0.1),
        "head.bias": (1e-2, 0.0),
    }, "frozen ones are in no group"
    assert all(group["peak"] == group["lr"] for group in found)
    assert sum(len(group["params"]) for group in found) == 5
    even = groups(model, DEPTH, lr=1e-3, head_lr=1e-2)
    assert {group["lr"] for group in even} == {1e-3, 1e-2} and not any(g["weight_decay"] for g in even)


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_optimisers_are_pytorchs(name: str, kind: type) -> None:
    """Two steps are those of the plain class: rates, decay and momentum arrive."""
    mine, theirs = module(), module()
    ours = make(name, groups(mine, DEPTH, lr=0.1, head_lr=0.2, weight_decay=0.3), momentum=0.7)
    decayed = [
        {"params": [p for n, p in theirs.named_parameters() if p.requires_grad and (n in DEPTH) == deep
                    and (p.ndim > 1) == wide], "lr": 0.1 if deep else 0.2, "weight_decay": 0.3 * wide}
        for deep in (True, False)
        for wide in (True, False)
    ]  # fmt: skip
    more = {"momentum": 0.7, "nesterov": True} if name == "sgd" else {}
    other = kind(decayed, **more)
    assert type(ours) is kind and name in OPTIMIZERS and ours.defaults["fused"]
    x = torch.randn(5, 2)
    for _ in range(2):
        for model, optimizer in ((mine, ours), (theirs, other)):
            optimizer.zero_grad()
            model["head"](model["high"](model["low"](x))).square().sum().backward()
            optimizer.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_no_momentum_and_no_such_name() -> None:
    plain = make("sgd", [{"params": [nn.Parameter(torch.ones(1))], "lr": 0.1}], momentum=0.0)
    assert not plain.defaults["nesterov"]
    with pytest.raises(UsageError, match="no optimiser is called 'lion'; there are: adamw, adam, sgd"):
        make("lion", [{"params": [nn.Parameter(torch.ones(1))]}])


def test_the_rate_rises_then_falls_to_zero() -> None:
    assert factor(0.0, 0.1) == 0.01 and factor(0.05, 0.1) == pytest.approx(0.5)
    assert factor(0.1, 0.1) == 1.0 and factor(1.0, 0.1) == 0.0 and factor(1.5, 0.1) == 0.0
    for share in (0.2, 0.5, 0.8):
        expected = 0.5 * (1 + math.cos(math.pi * share))
        assert factor(0.1 + 0.9 * share, 0.1) == pytest.approx(expected)
    assert factor(0.0, 0.0) == 1.0
    assert factor(0.025) == pytest.approx(0.5), "a twentieth to warm up"


def test_rates_are_set_from_their_peaks() -> None:
    optimizer = make("adamw", groups(module(), DEPTH, lr=0.1, head_lr=0.4))
    assert set_rate(optimizer, 0.55, 0.1) == pytest.approx(0.5)
    assert {round(g["lr"], 9) for g in optimizer.param_groups} == {0.05, 0.2}
    set_rate(optimizer, 0.1, 0.1)
    assert {g["lr"] for g in optimizer.param_groups} == {0.1, 0.4}, "not from the last rate"
