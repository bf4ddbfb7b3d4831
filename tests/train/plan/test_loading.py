"""How quickly views come, by a loader whose time is given."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from planning import Make

from fieldmark.data.loader import Loader, Photos
from fieldmark.runtime.preprocess import Preprocess
from fieldmark.train.plan import loading as loadings
from fieldmark.train.plan import measure
from fieldmark.train.plan.loading import Loading, loading
from fieldmark.train.plan.measure import Gauge, Speed


class Slow(Loader):
    """0.02 s to read a photo, 0.01 s to vary it."""

    def batches(self, steps: Any, *, raw: bool = False) -> Any:
        read = set()
        for rows, epoch in steps:
            assert epoch is not None
            time.sleep(0.01 * len(rows) + 0.02 * len(set(rows) - read) * (epoch == 0))
            read |= set(rows)
            yield np.zeros(len(rows))


def test_reading_and_varying_are_told_apart() -> None:
    found = loading(Slow(Photos(["x"] * 40), Preprocess(size=8)), 0.4)
    assert found.views == pytest.approx(100, rel=0.2) and found.read == pytest.approx(0.02, rel=0.3)


def test_photos_are_read(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (300, 200), (number, 0, 0)).save(tmp_path / f"{number}.png")
    photos = Photos([str(path) for path in sorted(tmp_path.iterdir())])
    found = loading(Loader(photos, Preprocess(size=64)), 0.05)
    assert 0 < found.views < math.inf and found.read >= 0 and photos.kept[0] == 3


def test_views_and_the_frozen_part_share_the_cores(network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    net, asked = network(), []
    monkeypatch.setattr(measure, "rate", lambda *_: 10.0)
    monkeypatch.setattr(measure, "loading", lambda side: asked.append(side) or Loading(50.0, 0.1))
    gauge = Gauge(4, 1, world=2)
    gauge.size, gauge.loader = 32, lambda side: side
    bare = gauge.speed(net, "")
    assert bare == Speed(100.0, 20.0, read=0.05)
    assert gauge.speed(net, net.usable()[1]).lower < 100.0, "what is frozen takes time, too"
    assert asked == [32], "measured once"
    assert bare.seconds(10, 2) == pytest.approx(10 * (2 / 20 + 2 / 100 + 0.05))
    assert bare.seconds(10, 2, kept=4) == pytest.approx(10 * (2 / 20 + 4 / 100 + 0.05))


def test_beside_a_gpu_loading_takes_no_time_of_the_steps() -> None:
    gauge = Gauge(4, 1, device=object())
    gauge.loader = lambda side: pytest.fail("it was measured")
    assert gauge.loading() == Loading() == (math.inf, 0.0) and loadings.BATCH > 1
