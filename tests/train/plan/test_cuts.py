"""Where a network may be cut, and where plans cut it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planning import Make, planner
from torch import nn

from fieldmark.nn.chain import chain
from fieldmark.train.plan import cuts
from fieldmark.train.plan.cuts import Place, entries, places, shares
from fieldmark.train.plan.measure import Gauge, Speed


def test_the_cut(network: Make) -> None:
    net = network()
    early, late = (planner(epochs=1).cuts.last(net, most) for most in (cuts.FRESH, cuts.KEPT))
    places = net.usable()
    part = dict(
        zip([link.name for link in net.links], shares(net.links, torch.zeros(1, 3, 32, 32)), strict=True)
    )
    assert early in ("", *places) and late in places
    assert part[late] <= cuts.KEPT and (not early or part[early] <= cuts.FRESH)
    after = places.index(late) + 1
    assert after == len(places) or part[places[after]] > cuts.KEPT, "as late as may be"
    assert (
        planner(epochs=1, cut="none").cuts.last(net, 0.9) == ""
        and planner(epochs=1, cut="x").cuts.last(net, 0.9) == "x"
    )
    assert planner(gpu=True, epochs=1).cuts.last(net, 0.9) == "", "a GPU learns all of it"
    assert planner(epochs=1).cuts.last(network("test_vit", size=160), 0.9) == ""


def test_shares_are_multiplications() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1))
    x = torch.zeros(1, 3, 10, 10)
    first, last = 3 * 4, 4 * 8 * 9
    expected = [first / (first + last), first / (first + last), 1.0]
    assert shares(chain(model, x, model), x) == pytest.approx(expected)


@pytest.mark.parametrize("late", [0.1, 0.3])
def test_methods_that_read_early_maps_leave_more_as_it_is(
    network: Make, speeds: Make, monkeypatch: pytest.MonkeyPatch, late: float
) -> None:
    """Where the last cut lies a good way before what could stay as it is; maps are kept at a cut only."""
    speeds(Speed(400.0, 50.0))
    found = [
        Place("conv_stem", 0.05),
        Place("blocks.0", late),
        Place("blocks.1", 0.34, False),
        Place("x", 0.6, False),
    ]
    monkeypatch.setattr(cuts, "places", lambda _: found)
    one = planner(budget=600.0)
    assert one.cuts.last(network(), cuts.FRESH) == ("blocks.1" if late == 0.1 else "blocks.0")
    assert one.cuts.kept(network()) == "blocks.0"


def test_places_and_entries(network: Make) -> None:
    net = network()
    found = places(net)
    assert [place.name for place in found if place.apart] == net.usable()
    parts = [place.share for place in found]
    assert parts == sorted(parts) and 0 < parts[0] <= parts[-1] <= 1
    for place in (one for one in found if one.apart):
        for size in (32, 64):
            expected = net.open(place.name)(torch.zeros(1, 3, size, size)).numel()
            net.close()
            assert entries(net, place.name, size) == expected


def test_places_are_looked_for_once(network: Make, speeds: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    net, asked = network(), []
    real = cuts.places
    monkeypatch.setattr(cuts, "places", lambda one: asked.append(1) or real(one))
    places = real(net)

    def speed(self: Gauge, network: Any, cut: str, heads: bool = False) -> Speed:
        return Speed(100.0, 50.0, 1000)

    monkeypatch.setattr(Gauge, "speed", speed)
    planner(budget=900.0, phases="two").plan(net, 1000, 10, "all", True)
    assert len(asked) == 1 and [place.name for place in places if place.apart] == net.usable()
