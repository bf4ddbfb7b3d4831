"""One specimen, seen from above, as a transparent picture in body frame: limbs under a lit, coloured body.

Colours are linear RGB in 0..1 until the last step, which takes the square root (a gamma of 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fieldmark.data.lookalikes.anatomy import BODIES, Array
from fieldmark.data.lookalikes.coat import Paint, Specimen, palette
from fieldmark.data.lookalikes.limbs import draw_limbs, pose
from fieldmark.data.lookalikes.marks import paint
from fieldmark.data.lookalikes.relief import HALF, TOP, Relief, relief
from fieldmark.data.lookalikes.wear import litter


@dataclass(frozen=True)
class Sprite:
    """A specimen, head up, ``density`` pixels a body length, body frame's (0, 0) being at pixel ``origin``.

    ``pixels`` [4, height, width] uint8 are colour and opacity (not premultiplied), ``mark`` [height, width]
    uint8 is the mark's opacity, ``points`` are the limbs' named points in body frame.
    """

    pixels: Array
    mark: Array
    density: float
    origin: tuple[float, float]
    points: dict[str, tuple[float, float]]


def sprite(one: Specimen, density: float, light: Array, sun: float, style: str) -> Sprite:
    """Draw a specimen at ``density`` pixels a body length; ``light`` [3] points to the sun, in body frame."""
    s = relief(one.genus, density)
    colours = palette(one, s)
    marked = paint(one.mark, s, np.random.default_rng(one.seed_mark), 1 / BODIES[one.genus].size)
    limbs = pose(one.genus, one.mark, np.random.default_rng(one.seed_pose))
    ends = np.concatenate([limbs.start, limbs.end, [[-HALF, -TOP], [HALF, 1 + TOP]]])
    low, high = np.floor((ends.min(0) - 0.04) * density), np.ceil((ends.max(0) + 0.04) * density)
    size, origin = (int(high[0] - low[0]), int(high[1] - low[1])), (-float(low[0]), -float(low[1]))
    pixels, mark = draw_limbs(limbs, size, origin, density, light, colours.legs, colours.pigment, style)
    if style == "photo":
        body = _photo(s, colours, BODIES[one.genus].shine, marked, light, sun)
        litter(body, s, np.random.default_rng(one.seed_wear), light)
    else:
        body = _drawing(s, colours, marked, light)
    body = np.sqrt(np.clip(body, 0, 1)) * np.float32(255)
    # the body over the limbs
    top = round(origin[1] + float(s.y[0, 0]) * density - 0.5)
    left = round(origin[0] + float(s.x[0, 0]) * density - 0.5)
    window = slice(top, top + body.shape[1]), slice(left, left + body.shape[2])
    below = pixels[:, window[0], window[1]]
    limb = below[3] * np.float32(1 / 255) * (1 - s.cover)
    share = s.cover / np.maximum(s.cover + limb, 1e-3)
    below[:3] = below[:3] * (1 - share) + body * share + 0.5
    below[3] = (s.cover + limb) * 255 + 0.5
    mark[window] = np.maximum(mark[window] * (1 - s.cover), marked * s.cover * 255)
    return Sprite(pixels, mark, density, origin, limbs.points)


def _photo(s: Relief, p: Paint, shine: float, marked: Array, light: Array, sun: float) -> Array:
    """Glossy chitin: iridescent pigment, wrapped diffuse light, a soft-box highlight, a sky in the rim."""
    nx, ny, nz = s.normal
    toward = nx * light[0] + ny * light[1] + nz * light[2]
    half = light + np.array([0, 0, 1], np.float32)
    half = half / np.linalg.norm(half)
    glint = np.clip(nx * half[0] + ny * half[1] + nz * half[2], 0, 1)
    lit = np.clip(0.85 * toward + 0.15, 0, 1) ** 1.3 * sun
    sky = 0.06 + 0.22 * nz * nz
    tilt = np.clip((1 - nz) * 1.5, 0, 1)
    fresnel = (1 - nz) ** 3
    window = np.clip((glint - 0.958) / 0.026, 0, 1)
    window = window * window * (3 - 2 * window)
    g2 = glint * glint
    g4 = g2 * g2
    g12 = g4 * g4 * g4
    matte = 1 - 0.35 * marked
    mirror = (shine * sun) * (0.42 * window + 0.10 * g12) * matte + 0.10 * fresnel * shine
    bloom = p.metal * (1.1 * g4 + 0.9 * g12) * (1 - marked)  # metals reflect in their own colour
    mottle = s.tone * (1 + 0.10 * s.grain)
    keep = 1 - s.eye
    out = np.empty((3, *s.cover.shape), np.float32)
    for c in range(3):
        albedo = (p.front[c] + (p.slant[c] - p.front[c]) * tilt) * mottle * keep + 0.004
        albedo = albedo + (p.pigment[c] * (1 + 0.05 * s.grain) - albedo) * marked
        out[c] = (albedo * (lit * 1.25 + sky + bloom * lit) + mirror) * s.shade
    return out


def _drawing(s: Relief, p: Paint, marked: Array, light: Array) -> Array:
    """Watercolour and ink: two washes, hatching on the far side, a bare-paper highlight, outlines."""
    nx, ny, nz = s.normal
    toward = nx * light[0] + ny * light[1] + nz * light[2]
    dark = np.clip((0.62 - toward) * 9 + s.grain, 0, 1)
    glow = np.clip((toward - 0.93) * 22 + 0.5 * s.grain, 0, 1) * 0.75
    hatch = np.clip(np.cos((s.x + s.y) * (2 * np.pi / 0.030)) * 2 - 0.6, 0, 1) * np.clip(
        (0.42 - toward) * 8, 0, 1
    )
    line = np.maximum(s.ink * 0.92, 0.6 * hatch)
    line = np.maximum(line, s.eye * 0.9)
    out = np.empty((3, *s.cover.shape), np.float32)
    for c in range(3):
        wash = 0.07 + 2.2 * p.front[c] * (1 + 0.25 * s.grain)
        wash = wash * (1 - 0.5 * dark) + (0.85 - wash) * glow
        wash = wash + (p.pigment[c] * (1 - 0.25 * dark) - wash) * marked
        out[c] = wash * (1 - line) + 0.012 * line
    return out
