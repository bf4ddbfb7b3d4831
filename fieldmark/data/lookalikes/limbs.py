"""Legs, antennae and jaws: jointed, posed anew for every specimen, drawn at twice the size and reduced."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, radians, sin

import numpy as np
from PIL import Image, ImageDraw

from fieldmark.data.lookalikes.anatomy import BODIES, Array, Limbs, Point

_SS = 2  # drawn this many times larger
_JOINTS = 11  # segments of an antenna
_TIP = 0.115  # how much of an antenna is coloured, where the tips are the mark

Segment = tuple[
    Point, Point, float, float, float, bool
]  # from, to, widths at start, middle, end, is it the mark


@dataclass(frozen=True)
class Pose:
    """Bars in body frame: ends [n, 2] each, widths [n, 3], which are the mark [n]; named points."""

    start: Array
    end: Array
    widths: Array
    marked: Array
    points: dict[str, Point]


def pose(genus: str, mark: str, rng: np.random.Generator) -> Pose:
    """How a specimen holds its legs and antennae."""
    limbs = BODIES[genus].limbs
    segments: list[Segment] = []
    points: dict[str, Point] = {}
    for side, name in ((-1, "left"), (1, "right")):
        tip = ceil(_TIP / BODIES[genus].size / limbs.reach * _JOINTS) if mark == "antenna tips" else 0
        antenna = _antenna(limbs, side, rng, max(2, tip) if tip else 0)
        points[f"{name} antenna"] = antenna[-1][1]
        segments += antenna
        for pair, joint in enumerate(("front", "middle", "hind")):
            leg = _leg(limbs, pair, side, rng, mark == "thighs")
            points[f"{name} {joint} foot"] = leg[-1][1]
            points[f"{name} {joint} knee"] = leg[1][1]
            segments += leg
    segments += _jaws(BODIES[genus].jaws, BODIES[genus].head.top, rng)
    start, end = np.array([s[0] for s in segments]), np.array([s[1] for s in segments])
    return Pose(start, end, np.array([s[2:5] for s in segments]), np.array([s[5] for s in segments]), points)


def draw_limbs(
    limbs: Pose,
    size: tuple[int, int],
    origin: Point,
    density: float,
    light: Array,
    base: Array,
    pigment: Array,
    style: str,
) -> tuple[Array, Array]:
    """Pixels [4, height, width] (colour, opacity; coloured also where it is transparent) and mark [h, w]."""
    photo = style == "photo"
    # four plain channels, without Pillow's care for transparency: twice as quick, the fill prevents fringes
    image = Image.new("CMYK", (size[0] * _SS, size[1] * _SS), (*_byte(base), 0))
    brush = ImageDraw.Draw(image)
    place = np.array([origin]) * _SS, density * _SS

    def shapes(start: Array, end: Array, widths: Array) -> list[list[float]]:
        return (_bars(start, end, widths) * place[1] + place[0]).reshape(len(start), -1).tolist()

    fills = [(*_byte(base * (1.0 if photo else 2.2)), 255), (*_byte(pigment), 255)]
    if not photo:
        for shape in shapes(limbs.start, limbs.end, limbs.widths + 0.011):
            brush.polygon(shape, fill=(24, 20, 18, 255))
    bars = shapes(limbs.start, limbs.end, limbs.widths)
    for shape, marked in zip(bars, limbs.marked, strict=True):
        brush.polygon(shape, fill=fills[int(marked)])
    if photo:  # a bright line along the side that faces the light
        along = limbs.end - limbs.start
        across = np.stack([-along[:, 1], along[:, 0]], 1) / np.maximum(np.hypot(*along.T), 1e-6)[:, None]
        lean = across @ light[:2].astype(float)
        shift = across * (0.24 * limbs.widths[:, 1] * np.sign(lean))[:, None]
        lines = shapes(limbs.start + shift, limbs.end + shift, limbs.widths * (0.3, 0.38, 0.3))
        bright = np.where(limbs.marked[:, None], 1.7 * pigment, 2.2 * base)
        bright = np.sqrt(np.clip(bright + 0.025 + 0.075 * np.abs(lean)[:, None], 0, 1)) * 255 + 0.5
        for shape, colour in zip(lines, bright.astype(int).tolist(), strict=True):
            brush.polygon(shape, fill=(*colour, 255))
    mask = np.zeros((size[1], size[0]), np.uint8)
    if limbs.marked.any():
        stencil = Image.new("L", image.size)
        for i in np.flatnonzero(limbs.marked):
            ImageDraw.Draw(stencil).polygon(bars[i], fill=255)
        mask = np.array(stencil.reduce(_SS))
    return planes(image.reduce(_SS)), mask


def planes(image: Image.Image) -> Array:
    """An image's channels as [channels, height, width] uint8: arithmetic on planes is the quickest."""
    return np.stack([np.asarray(band) for band in image.split()])


def _bars(start: Array, end: Array, widths: Array) -> Array:
    """Outlines [n, 14, 2] of bars with rounded ends, of three widths each."""
    along = end - start
    length = np.maximum(np.hypot(*along.T), 1e-6)[:, None]
    t = along / length
    a, b, c = widths.T[:, :, None]
    at = np.concatenate(
        [-0.35 * a, 0 * a, length / 4, length / 2, length * 0.75, length, length + 0.35 * c], 1
    )
    wide = np.concatenate([0.55 * a, a, (a + 2 * b) / 3, b, (c + 2 * b) / 3, c, 0.55 * c], 1) / 2
    spine = start[:, None] + at[..., None] * t[:, None]
    aside = wide[..., None] * np.stack([-t[:, 1], t[:, 0]], 1)[:, None]
    return np.concatenate([spine + aside, (spine - aside)[:, ::-1]], 1)


def _byte(colour: Array) -> tuple[int, int, int]:
    r, g, b = (int(255 * min(1.0, max(0.0, float(c))) ** 0.5 + 0.5) for c in colour)
    return r, g, b


def _step(p: Point, angle: float, length: float, side: int) -> Point:
    return p[0] + side * length * cos(radians(angle)), p[1] + length * sin(radians(angle))


def _leg(limbs: Limbs, pair: int, side: int, rng: np.random.Generator, marked: bool) -> list[Segment]:
    (x, y), angle = limbs.joints[pair], limbs.angles[pair] + rng.normal(0, 8)
    bend = (-22, 30, 22)[pair] + rng.normal(0, 10)
    femur, tibia, tarsus = (length * (1.12 if pair == 2 else 1.0) for length in limbs.lengths)
    thick = limbs.thick
    hip = (side * x, y)
    start = _step(hip, angle, 0.06, side)
    knee = _step(hip, angle, femur + 0.06, side)
    ankle = _step(knee, angle + bend, tibia, side)
    found: list[Segment] = [
        (hip, start, thick, thick, thick, False),
        (start, knee, thick * 0.8, thick * (1.6 if marked else 1.35), thick * 0.7, marked),
        (knee, ankle, thick * 0.5, thick * 0.62, thick * 0.72, False),
    ]
    turn = angle + bend + (-8, 14, 10)[pair] + rng.normal(0, 8)
    for i in range(4):
        end = _step(ankle, turn + 5 * i, tarsus / 4, side)
        found.append((ankle, end, thick * 0.30, thick * 0.36, thick * 0.34, False))
        ankle = end
    return found


def _antenna(limbs: Limbs, side: int, rng: np.random.Generator, coloured: int) -> list[Segment]:
    """An antenna of which the last ``coloured`` segments are the mark."""
    lift, curl = rng.normal(0, 6), rng.normal(0, 5)
    p: Point = (side * limbs.root[0], limbs.root[1])
    shares = np.array([share for _, share in limbs.bends])
    middles = np.cumsum(shares) - shares / 2
    found: list[Segment] = []
    blades = 3 if limbs.club == "fan" else 0
    for i in range(_JOINTS - blades):
        s = (i + 0.5) / _JOINTS
        angle = float(np.interp(s, middles, [a for a, _ in limbs.bends])) + lift + 3 * curl * s
        q = _step(p, angle, limbs.reach / _JOINTS, side)
        width, marked = 0.020 - 0.006 * s, i >= _JOINTS - coloured
        a, b, c = 0.75 * width, width, 0.95 * width
        if limbs.club == "club" and i >= _JOINTS - 4:
            a, b, c = 0.026, 0.040, 0.036
        elif limbs.club == "toothed":
            a, b, c = 0.014, 0.024, 0.034
        if marked and not blades:
            a, b, c = max(a, 0.036), max(b, 0.038), max(c, 0.036)
        found.append((p, q, a, b, c, marked and not blades))
        p = q
    for k in range(blades):  # a fan: one blade on each of the last segments
        tip = _step(p, angle + (-34, -2, 30)[k], 0.115, side)
        found.append((p, tip, 0.014, 0.040, 0.032, coloured > 0))
    return found


def _jaws(reach: float, top: float, rng: np.random.Generator) -> list[Segment]:
    if not reach:
        return []
    gap = rng.uniform(0.004, 0.016)
    found: list[Segment] = []
    for side in (-1, 1):
        root, elbow, tip = (
            (side * 0.035, top + 0.02),
            (side * (0.034 + gap), top - 0.4 * reach),
            (side * gap, top - reach),
        )
        found += [(root, elbow, 0.030, 0.030, 0.024, False), (elbow, tip, 0.024, 0.018, 0.006, False)]
    return found
