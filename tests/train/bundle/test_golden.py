"""The pictures by which graphs are compared with networks."""

from __future__ import annotations

import numpy as np
import pytest

from fieldmark.runtime.preprocess import Preprocess
from fieldmark.train.bundle.golden import rendered


@pytest.mark.parametrize("size", [10, 96])
def test_rendered_pictures(size: int) -> None:
    preprocess = Preprocess(size=size)
    found = rendered(preprocess, 3)
    assert found.shape == (3, size, size, 3) and found.dtype == np.uint8
    assert np.array_equal(found, rendered(preprocess, 3)), "the same on every machine that checks a model"
    assert len({one.tobytes() for one in found}) == 3 and found.std() > 10


def test_they_are_as_smooth_as_photos() -> None:
    """A method that looks where it looked before gives the same answers to them, up to rounding."""
    values = rendered(Preprocess(size=96), 2).astype(np.float64)
    assert np.square(np.diff(values, axis=2)).mean() < values.var() / 2, (
        "white noise has twice its variance here"
    )
