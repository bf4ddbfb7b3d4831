"""What comes between the lens and the beetle: a blade of grass or a dry twig; never over the whole mark."""

from __future__ import annotations

from math import atan2, cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fieldmark.data.lookalikes.limbs import planes

Array = np.ndarray

#: How often something is in front of the beetle.
RATE = 0.35
_TRIES = 4
_COLOURS = ((104, 142, 52), (132, 158, 66), (84, 124, 60), (170, 146, 84), (124, 94, 62))


def choose(rng: np.random.Generator, mark: Array, alpha: Array, visible: float, style: str) -> Array | None:
    """A blade over some of the beetle that leaves at least ``visible`` of the mark uncovered, or None.

    ``mark`` and ``alpha`` are the mark's and the beetle's opacity, [size, size] uint8; the blade is colour and
    opacity, [4, size, size] uint8.
    """
    if rng.random() >= RATE:
        return None
    size = len(mark)
    seen = mark > 127
    rows, columns = np.nonzero(alpha > 127)
    for _ in range(_TRIES):
        pick = int(rng.integers(len(rows)))
        blade = _blade(rng, (float(columns[pick]), float(rows[pick])), size, style)
        hidden = blade[3] > 127
        if (seen & ~hidden).sum() >= visible * seen.sum() and (hidden & (alpha > 127)).any():
            return blade
    return None


def _blade(rng: np.random.Generator, target: tuple[float, float], size: int, style: str) -> Array:
    """A tapered, bent blade that comes in over the nearest edge and ends just beyond ``target``."""
    scale = 2
    colour = np.array(_COLOURS[int(rng.integers(len(_COLOURS)))]) * rng.uniform(0.8, 1.15)
    tx, ty = target
    angle = atan2(ty - size / 2, tx - size / 2) + rng.normal(0, 0.9)  # outwards
    root = (tx + cos(angle) * size, ty + sin(angle) * size)
    past = rng.uniform(0.06, 0.22) * size
    tip = (tx - cos(angle) * past, ty - sin(angle) * past)
    bow = rng.normal(0, 0.12) * size
    bend = ((root[0] + tip[0]) / 2 - sin(angle) * bow, (root[1] + tip[1]) / 2 + cos(angle) * bow)
    width = rng.uniform(0.026, 0.048) * size
    image = Image.new("CMYK", (size * scale, size * scale), (*_byte(colour), 0))  # see limbs.draw_limbs
    brush = ImageDraw.Draw(image)
    s = np.linspace(0, 1, 22)
    px = (1 - s) ** 2 * root[0] + 2 * s * (1 - s) * bend[0] + s**2 * tip[0]
    py = (1 - s) ** 2 * root[1] + 2 * s * (1 - s) * bend[1] + s**2 * tip[1]
    dx, dy = np.gradient(px), np.gradient(py)
    norm = np.maximum(np.hypot(dx, dy), 1e-6)
    ux, uy = -dy / norm, dx / norm
    half = width * np.sqrt(np.clip(1 - s, 0, 1)) * (0.75 + 0.25 * np.cos(s * pi))
    layers: tuple[tuple[float, float, float], ...] = (
        (1.0, 0.0, 0.72),
        (0.55, 0.38, 1.0),
        (0.40, -0.50, 0.86),
        (0.10, 0.0, 1.28),
    )
    if style == "drawing":
        layers = ((1.2, 0.0, 0.16), (0.92, 0.0, 1.2), (0.07, 0.0, 0.3))
    for wide, aside, tone in layers:
        a, b = half * (aside + wide), half * (aside - wide)
        a, b = np.minimum(a, half * 1.2), np.maximum(b, -half * 1.2)
        left = zip((px + ux * a) * scale, (py + uy * a) * scale, strict=True)
        right = list(zip((px + ux * b) * scale, (py + uy * b) * scale, strict=True))
        brush.polygon([*left, *right[::-1]], fill=(*_byte(colour * tone), 255))
    image = image.reduce(scale)
    return planes(image.filter(ImageFilter.BoxBlur(size * 0.0035)) if style == "photo" else image)


def _byte(colour: Array) -> tuple[int, int, int]:
    r, g, b = (int(min(255, max(0, c))) for c in colour)
    return r, g, b
