"""Photos as predict reads them, and boxes in what the network sees of them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fieldmark.data.augment.geometry import shown
from fieldmark.runtime import image
from fieldmark.runtime.preprocess import Preprocess


def opened(path: str, preprocess: Preprocess) -> tuple[Image.Image, tuple[int, int]]:
    """The photo, decoded at a reduced scale where predict does so, and the width and height that it really has.

    Raises ImageError for a photo that cannot be read.
    """
    data = image.read(path)
    return image.decode(data, preprocess.min_side), image.size(data)


def in_view(box: np.ndarray, size: tuple[int, int], preprocess: Preprocess) -> np.ndarray:
    """A box [4] in pixels of a photo [width, height] -> as shares of the sides of what the network sees, clipped to it;
    of no width or height where nothing of it is seen."""
    left, top, right, bottom = shown(size, preprocess)
    places = (box - np.array([left, top, left, top])) / np.tile([right - left, bottom - top], 2)
    return np.clip(places, 0, 1).astype(np.float32)
