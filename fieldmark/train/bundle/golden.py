"""Pictures by which graphs and engines are compared with the network: rendered, so that no user's photo travels."""

from __future__ import annotations

import numpy as np

from fieldmark.data import lookalikes
from fieldmark.data.lookalikes.scene import SIZES
from fieldmark.runtime.preprocess import Preprocess


def rendered(preprocess: Preprocess, count: int) -> np.ndarray:
    """Beetles of ``count`` species, as the network sees them: uint8 [N, S, S, 3].

    Not noise: in that all places are alike, and rounding decides where a method looks next.
    """
    kinds = lookalikes.species()
    size = min(max(preprocess.size, SIZES[0]), SIZES[1])
    pictures = (lookalikes.render(kinds[n % len(kinds)], n, size=size).image for n in range(count))
    return np.stack([preprocess.pixels(picture) for picture in pictures])
