"""What tests of views share: photos whose pixels say where they were, and settings with everything off."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fieldmark.data.augment import Augment
from fieldmark.data.augment.view import view_rng

#: Everything off; tests switch on what they look at.
NONE = Augment.none()
GREY = (124, 116, 104)  # what Preprocess pads with: 255 times the default mean


def but(**changes: object) -> Augment:
    return Augment(**{**NONE.model_dump(), **changes})


def photo(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    """Smooth enough that resizing it is no lottery."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


def ramp(width: int = 90, height: int = 60) -> Image.Image:
    """Red says how far right, green how far down, blue is 200."""
    x = np.broadcast_to(np.linspace(0, 255, width)[None], (height, width))
    y = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.rint(np.stack([x, y, np.full_like(x, 200)], 2)).astype(np.uint8))


def rngs(count: int) -> list[np.random.Generator]:
    return [view_rng(0, "photo", epoch) for epoch in range(count)]
