"""How quickly views of photos come, before any network sees them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from itertools import cycle
from typing import NamedTuple

import numpy as np

from fieldmark.data.loader import Loader, Step

#: Seconds for reading photos, and as many for varying them; photos a batch.
SECONDS, BATCH = 0.6, 16


class Loading(NamedTuple):
    """views: a second, of photos that were read before; read: seconds that a photo takes more the first time."""

    views: float = math.inf
    read: float = 0.0


def loading(loader: Loader, seconds: float = SECONDS) -> Loading:
    """Read some photos by chance, and vary them again and again. Raises ImageError for one that cannot be read."""
    rows = np.random.default_rng(0).permutation(len(loader.photos))
    some = [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]
    done, first = _timed(loader, ((part, 0) for part in some), seconds)
    known = some[: -(-done // BATCH)]
    again = cycle((part, epoch) for epoch in (1, 2) for part in known)
    varied, passed = _timed(loader, again, seconds)
    return Loading(varied / passed, max(0.0, first / done - passed / varied))


def _timed(loader: Loader, steps: Iterable[Step], seconds: float) -> tuple[int, float]:
    """Views that came, and the seconds that this took, when about so many had passed or no more were asked for."""
    done, begun = 0, time.perf_counter()
    for images in loader.batches(steps):
        done += len(images)
        if time.perf_counter() - begun > seconds:
            break
    return done, max(time.perf_counter() - begun, 1e-9)
