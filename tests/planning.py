"""What tests of plans share: planners of recipes, for CPUs and GPUs, for one process or several."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fieldmark.train.loop.watch import Watch
from fieldmark.train.plan.planner import Planner
from fieldmark.train.recipe import Recipe

Make = Callable[..., Any]


def planner(gpu: bool = False, world: int = 1, rate: float = 100.0, **options: Any) -> Planner:
    return Planner(Recipe(**options), 5, Watch(time.time()), rate, gpu=gpu, workers=1, world=world)
