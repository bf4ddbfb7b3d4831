"""What the beetles sit on: a cut of a texture, turned, tinted, mirrored to agree with the light."""

from __future__ import annotations

from math import cos, sin

import numpy as np
from PIL import Image

from fieldmark.data.lookalikes.textures import KINDS, VARIANTS, noise, picture, texture

Array = np.ndarray
Rng = np.random.Generator

TINTS = ("plain", "warm", "cool")
#: Every background that a picture can have: "leaf plain", "leaf warm", …
NAMES = tuple(f"{kind} {tint}" for tint in TINTS for kind in KINDS)
#: How much larger than the picture a texture is; the largest texture's side in pixels.
ROOM, LARGEST = 1.75, 1024

_GAINS = {"plain": (1.0, 1.0, 1.0), "warm": (1.08, 1.0, 0.84), "cool": (0.89, 0.99, 1.09)}


def gains(name: str) -> tuple[float, float, float]:
    """What the background's tint multiplies red, green and blue with."""
    return _GAINS[name.rsplit(maxsplit=1)[1]]


def ground(rng: Rng, name: str, size: int, mirrored: bool, style: str) -> Image.Image:
    """A cut of the background ``name`` (RGB, size x size): another place, turn and zoom for every picture."""
    kind = name.rsplit(maxsplit=1)[0]
    side = min(round(ROOM * size), LARGEST)
    variant, focus = int(rng.integers(VARIANTS)), int(rng.integers(3))
    zoom, angle = rng.uniform(0.72, 1.05), rng.uniform(-0.26, 0.26)
    shift_x, shift_y = rng.random(2)
    gain = np.array(gains(name)) * np.exp(rng.normal(0, 0.04, 3) + rng.normal(-0.03, 0.08))
    if style == "drawing":
        return _washed(rng, kind, size, gain)
    image = texture(kind, variant, side, focus)
    side = image.width
    zoom *= side / (ROOM * size)
    c, s = zoom * cos(angle), zoom * sin(angle)
    reach = size * (abs(c) + abs(s)) / 2
    cx, cy = reach + (side - 2 * reach) * shift_x, reach + (side - 2 * reach) * shift_y
    sign = -1 if mirrored else 1
    data = (sign * c, -s, cx - (sign * c - s) * size / 2, sign * s, c, cy - (sign * s + c) * size / 2)
    cut = image.transform((size, size), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    return cut.point(np.minimum(255, np.outer(gain, np.arange(256)) + 0.5).astype(int).ravel().tolist())


def _washed(rng: Rng, kind: str, size: int, gain: Array) -> Image.Image:
    """Paper with a blotch of watercolour, in the colour of the background that it stands for."""
    paper = np.asarray(texture("paper", 0, size), np.float32)
    tint = np.asarray(texture(kind, 0, 64).resize((1, 1), Image.Resampling.BOX), np.float32)[0, 0] * gain
    blotch = np.clip(0.9 + 1.6 * noise(rng, size, (3, 6, 13)), 0, 1) * 0.34
    edge = np.clip(1 - np.abs(blotch - 0.17) * 14, 0, 1) * 0.10  # pigment gathers where a wash ends
    return picture(240 + 0.5 * (paper - 240) - (blotch + edge)[..., None] * (250 - tint))
