"""How quick the machine is, as tests of plans say: no clock decides."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from fieldmark.train.plan import cuts
from fieldmark.train.plan.measure import Gauge, Speed


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Callable[[Speed], None]:
    """Set how quick this machine is taken to be: behind a late cut the steps are four times as quick."""

    def given(early: Speed, entries: int = 1000) -> None:
        def speed(self: Gauge, network: Any, cut: str, heads: bool = False) -> Speed:
            names = [place.name for place in cuts.places(network) if place.share <= cuts.FRESH]
            late = cut and cut not in names
            if late:
                return Speed(early.lower / 2, early.step * 4, entries)
            return Speed(early.lower if cut else math.inf, early.step, entries)

        monkeypatch.setattr(Gauge, "speed", speed)

    return given
