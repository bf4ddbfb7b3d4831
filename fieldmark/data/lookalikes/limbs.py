"""Legs, antennae and jaws: jointed, posed anew for every specimen, drawn at twice the size and reduced."""

from __future__ import annotations

from math import cos, hypot, radians, sin

import numpy as np
from PIL import Image, ImageDraw

from fieldmark.data.lookalikes.anatomy import BODIES, Array, Limbs, Point

_SS = 2  # drawn this many times larger
_JOINTS = 11  # segments of an antenna
_TIP = 4  # of them the last, coloured where the tips are the mark

Segment = tuple[
    Point, Point, float, float, float, bool
]  # from, to, widths at start, middle, end, is it the mark


def draw_limbs(
    genus: str,
    mark: str,
    rng: np.random.Generator,
    size: tuple[int, int],
    origin: Point,
    density: float,
    light: Array,
    coat: Array,
    pigment: Array,
    style: str,
) -> tuple[Image.Image, Image.Image, dict[str, Point]]:
    """Draw all limbs: the RGBA picture [size], the mark's mask (L), and named points in body frame."""
    limbs = BODIES[genus].limbs
    segments: list[Segment] = []
    points: dict[str, Point] = {}
    for side, name in ((-1, "left"), (1, "right")):
        antenna = _antenna(limbs, side, rng, mark == "antenna tips")
        points[f"{name} antenna"] = antenna[-1][1]
        segments += antenna
        for pair, joint in enumerate(("front", "middle", "hind")):
            leg = _leg(limbs, pair, side, rng, mark == "thighs")
            points[f"{name} {joint} foot"] = leg[-1][1]
            points[f"{name} {joint} knee"] = leg[1][1]
            segments += leg
    segments += _jaws(BODIES[genus].jaws, BODIES[genus].head.top, rng)
    base = 0.5 * coat + np.array([0.016, 0.012, 0.009])
    tint = (base, pigment)
    empty = tuple(_byte(base)) + (0,)
    image = Image.new("RGBA", (size[0] * _SS, size[1] * _SS), empty)
    mask = Image.new("L", size) if mark not in ("antenna tips", "thighs") else Image.new("L", image.size)
    brush = ImageDraw.Draw(image)
    stencil = ImageDraw.Draw(mask)
    scale = density * _SS
    ox, oy = origin[0] * _SS, origin[1] * _SS
    toward = np.array(light[:2], float)

    def put(p: Point, q: Point, a: float, b: float, c: float) -> list[Point]:
        return [(ox + scale * x, oy + scale * y) for x, y in _spindle(p, q, a, b, c)]

    if style != "photo":
        for p, q, a, b, c, _ in segments:
            brush.polygon(put(p, q, a + 0.011, b + 0.011, c + 0.011), fill=(24, 20, 18, 255))
    for p, q, a, b, c, marked in segments:
        shape = put(p, q, a, b, c)
        colour = tint[marked]
        brush.polygon(shape, fill=(*_byte(colour * (1.0 if marked or style == "photo" else 2.2)), 255))
        if marked:
            stencil.polygon(shape, fill=255)
        if style == "photo":
            along = np.array([q[0] - p[0], q[1] - p[1]])
            across = np.array([-along[1], along[0]]) / max(1e-6, hypot(*along))
            lean = float(across @ toward)
            shift = across * (0.24 * b * np.sign(lean))
            shiny = 0.25 + 0.75 * abs(lean)
            bright = colour * (1.7 if marked else 2.2) + 0.10 * shiny
            p2, q2 = (p[0] + shift[0], p[1] + shift[1]), (q[0] + shift[0], q[1] + shift[1])
            brush.polygon(put(p2, q2, a * 0.3, b * 0.38, c * 0.3), fill=(*_byte(bright), 255))
    if mask.size != size:
        mask = mask.reduce(_SS)
    return image.reduce(_SS), mask, points


def _byte(colour: Array) -> tuple[int, int, int]:
    r, g, b = (int(255 * min(1.0, max(0.0, float(c))) ** 0.5 + 0.5) for c in colour)
    return r, g, b


def _spindle(p: Point, q: Point, a: float, b: float, c: float) -> list[Point]:
    """A rounded bar from p to q, of widths a, b (in the middle), c."""
    dx, dy = q[0] - p[0], q[1] - p[1]
    length = max(hypot(dx, dy), 1e-6)
    tx, ty = dx / length, dy / length
    found: list[Point] = []
    stations = ((-0.3, 0.55), (0.0, 1.0), (0.25, 0.0), (0.5, 0.0), (0.75, 0.0), (1.0, 1.0), (1.3, 0.55))
    widths = (a * 0.55, a, (a + 2 * b) / 3, b, (c + 2 * b) / 3, c, c * 0.55)
    offsets = (-0.35 * a, 0.0, 0.25 * length, 0.5 * length, 0.75 * length, length, length + 0.35 * c)
    for side in (1, -1):
        order = range(len(stations)) if side == 1 else range(len(stations) - 1, -1, -1)
        for i in order:
            s, w = offsets[i], side * widths[i] / 2
            found.append((p[0] + tx * s - ty * w, p[1] + ty * s + tx * w))
    return found


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


def _antenna(limbs: Limbs, side: int, rng: np.random.Generator, marked: bool) -> list[Segment]:
    lift = rng.normal(0, 6)
    curl = rng.normal(0, 5)
    p: Point = (side * limbs.root[0], limbs.root[1])
    steps = np.array([share for _, share in limbs.bends])
    ends = np.cumsum(steps)
    found: list[Segment] = []
    for i in range(_JOINTS):
        s = (i + 0.5) / _JOINTS
        angle = float(np.interp(s, ends - steps / 2, [a for a, _ in limbs.bends])) + lift + curl * s * 3
        q = _step(p, angle, limbs.reach / _JOINTS, side)
        tip = i >= _JOINTS - _TIP
        width = 0.020 - 0.006 * s
        widths = (width * 0.75, width, width * 0.95)
        if limbs.club == "club" and tip:
            widths = (0.026, 0.040, 0.036)
        elif limbs.club == "toothed":
            widths = (0.014, 0.024, 0.034)
        coloured = marked and tip
        if coloured:
            widths = tuple(max(w, 0.036) for w in widths)  # type: ignore[assignment]
        if limbs.club == "fan" and i >= _JOINTS - 3:
            for k, spread in enumerate((-34, -2, 30)):
                if i == _JOINTS - 3 + k:
                    root = found[-1][1] if k == 0 else found[-k][1]
                    blade = _step(root, angle + spread, 0.10, side)
                    found.append((root, blade, 0.014, 0.038, 0.030, marked))
            continue
        found.append((p, q, *widths, coloured))
        p = q
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
