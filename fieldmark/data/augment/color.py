"""Brightness, contrast, saturation and hue of RGB photos: each a linear map of a pixel, all of them one matrix.

One pass over the picture, without Python's lock, in place of torchvision's functions one after the other, whose turn
of the hue alone takes twice as long as all else that is done for a view. Where none of those meets the end of the
scale, the first three give torchvision's values (but for its rounding in between). Hue is turned in YIQ, around the
axis of greys, which keeps the luminance; torchvision's turn in HSV is no linear map, and moves by about as much.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from PIL import Image

#: Luminance of R, G and B (ITU-R BT.601).
GREY = np.array([0.299, 0.587, 0.114])
#: R, G, B -> Y, I, Q (NTSC, 1953).
_YIQ = np.array([GREY, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


def recolored(image: Image.Image, matrix: np.ndarray) -> Image.Image:
    """An RGB photo with every pixel mapped by [4, 4] on (R, G, B, 1), rounded and cut to bytes."""
    return image.convert("RGB", tuple(matrix[:3].ravel().tolist()))


def mean(image: Image.Image) -> np.ndarray:
    """Of all pixels: (R, G, B, 1), to a level or so."""
    return np.append(np.asarray(image.resize((1, 1), Image.Resampling.BOX))[0, 0], 1.0)


def brightness(factor: float) -> np.ndarray:
    """Every value times the factor: [4, 4], as `recolored` takes it."""
    return np.diag([factor, factor, factor, 1.0])


def contrast(factor: float, grey: float) -> np.ndarray:
    """Every value's distance to the photo's mean luminance times the factor."""
    matrix = brightness(factor)
    matrix[:3, 3] = (1 - factor) * grey
    return matrix


def saturation(factor: float) -> np.ndarray:
    """Every value's distance to the pixel's own luminance times the factor."""
    matrix = brightness(factor)
    matrix[:3, :3] += (1 - factor) * GREY
    return matrix


def hue(turn: float) -> np.ndarray:
    """Colours turned by this share of the circle, from red towards yellow; greys and luminance stay."""
    matrix, (to, back) = np.eye(4), _yiq()
    cos, sin = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    matrix[:3, :3] = back @ np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]) @ to
    return matrix


@cache
def _yiq() -> tuple[np.ndarray, np.ndarray]:
    return _YIQ, np.linalg.inv(_YIQ)
