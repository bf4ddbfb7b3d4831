"""The beetles' bodies, as numbers: plates (head, pronotum, wing cases), limbs, named points.

Everything is in body frame: y from the head's front (0) to the tail (1), the body's length being 1; x = 0 is
the axis, positive to the right when the head is up. ``relief`` turns a genus into surfaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

Array = np.ndarray
Point = tuple[float, float]


@dataclass(frozen=True)
class Plate:
    """One symmetric piece: half widths at equal steps from ``top`` to ``bottom``, rounded at both ends.

    ``front`` and ``back`` are the reach of the rounding (as a part of the length), ``height`` the dome's.
    """

    top: float
    bottom: float
    widths: tuple[float, ...]
    front: float = 0.2
    back: float = 0.2
    height: float = 0.12
    tone: float = 1.0

    def half_width(self, y: Array) -> Array:
        """Half width at y (any shape); 0 outside of the plate."""
        t = (y - self.top) / (self.bottom - self.top)
        return np.where((t > 0) & (t < 1), _smooth(self.widths, t) * _rounded(t, self.front, self.back), 0.0)


@dataclass(frozen=True)
class Limbs:
    """Legs (three pairs: where they join, angle, lengths of femur, tibia, tarsus, thickness) and antennae."""

    joints: tuple[Point, Point, Point]
    angles: tuple[float, float, float]  # degrees, 0 = straight out, positive = backwards
    lengths: tuple[float, float, float]
    thick: float
    root: Point  # where the right antenna starts
    bends: tuple[tuple[float, float], ...]  # (angle, share of the length) along the antenna
    reach: float  # the antenna's length
    club: str = "thread"  # thread | fan | club | toothed


@dataclass(frozen=True)
class Anatomy:
    """A genus' body: its plates from the lowest to the highest, eyes (x, y, radius), limbs, surface."""

    elytra: Plate
    pronotum: Plate
    head: Plate
    eye: tuple[float, float, float]
    limbs: Limbs
    striae: int = 0
    groove: float = 0.0  # depth of the striae
    pits: float = 0.0  # depth of the punctures
    shine: float = 1.0
    extra: tuple[Plate, ...] = ()  # under everything: snout, last segment
    size: float = 1.0  # of the body's length in the picture, so that wide ones are not too large
    jaws: float = 0.0


BODIES: dict[str, Anatomy] = {
    "Carabella": Anatomy(
        elytra=Plate(0.385, 1.0, (0.165, 0.205, 0.225, 0.225, 0.205, 0.16), 0.10, 0.48, 0.16),
        pronotum=Plate(0.185, 0.40, (0.115, 0.155, 0.160, 0.135, 0.115), 0.10, 0.06, 0.07),
        head=Plate(0.03, 0.215, (0.055, 0.075, 0.095, 0.095, 0.085), 0.35, 0.05, 0.06),
        eye=(0.083, 0.108, 0.024),
        limbs=Limbs(
            ((0.11, 0.30), (0.15, 0.46), (0.15, 0.56)),
            (-42, 12, 48),
            (0.25, 0.24, 0.16),
            0.030,
            (0.055, 0.06),
            ((-62, 0.25), (-42, 0.40), (-18, 0.35)),
            0.50,
        ),
        striae=7,
        groove=0.0042,
        pits=0.0,
        shine=1.0,
        jaws=0.05,
    ),
    "Longicerus": Anatomy(
        elytra=Plate(0.300, 1.0, (0.172, 0.172, 0.166, 0.160, 0.150, 0.125), 0.06, 0.22, 0.13),
        pronotum=Plate(0.135, 0.315, (0.095, 0.108, 0.150, 0.112, 0.100), 0.08, 0.06, 0.08),
        head=Plate(0.0, 0.16, (0.075, 0.090, 0.096, 0.090), 0.35, 0.05, 0.07),
        eye=(0.078, 0.075, 0.026),
        limbs=Limbs(
            ((0.10, 0.25), (0.12, 0.40), (0.12, 0.50)),
            (-35, 18, 52),
            (0.20, 0.21, 0.13),
            0.034,
            (0.055, 0.045),
            ((-40, 0.22), (10, 0.22), (48, 0.26), (66, 0.30)),
            0.88,
        ),
        striae=0,
        groove=0.0,
        pits=0.0035,
        shine=0.7,
        jaws=0.025,
    ),
    "Scarabula": Anatomy(
        elytra=Plate(0.375, 0.965, (0.265, 0.285, 0.300, 0.298, 0.265, 0.19), 0.07, 0.24, 0.20),
        pronotum=Plate(0.145, 0.395, (0.165, 0.225, 0.265, 0.282, 0.272), 0.16, 0.12, 0.13),
        head=Plate(0.01, 0.18, (0.105, 0.115, 0.125, 0.135), 0.22, 0.05, 0.06),
        eye=(0.125, 0.125, 0.022),
        limbs=Limbs(
            ((0.17, 0.28), (0.22, 0.47), (0.22, 0.60)),
            (-48, 8, 44),
            (0.20, 0.19, 0.13),
            0.046,
            (0.095, 0.075),
            ((-58, 0.45), (-24, 0.55)),
            0.20,
            "fan",
        ),
        striae=4,
        groove=0.0030,
        pits=0.0018,
        shine=0.85,
        size=0.92,
        extra=(Plate(0.80, 1.0, (0.20, 0.20, 0.13), 0.1, 0.5, 0.08, 0.8),),
    ),
    "Rotundella": Anatomy(
        elytra=Plate(0.265, 1.0, (0.290, 0.375, 0.405, 0.405, 0.385, 0.34), 0.20, 0.62, 0.30),
        pronotum=Plate(0.10, 0.325, (0.185, 0.245, 0.275, 0.270, 0.235), 0.30, 0.35, 0.11),
        head=Plate(0.02, 0.16, (0.105, 0.125, 0.140, 0.135), 0.45, 0.05, 0.06),
        eye=(0.105, 0.085, 0.026),
        limbs=Limbs(
            ((0.20, 0.26), (0.34, 0.45), (0.32, 0.62)),
            (-38, 2, 36),
            (0.16, 0.15, 0.09),
            0.036,
            (0.085, 0.055),
            ((-66, 0.35), (-34, 0.65)),
            0.23,
            "club",
        ),
        shine=1.25,
        size=0.84,
        pits=0.0006,
    ),
    "Gemmarius": Anatomy(
        elytra=Plate(0.315, 1.0, (0.205, 0.212, 0.208, 0.190, 0.150, 0.085), 0.06, 0.16, 0.15),
        pronotum=Plate(0.105, 0.335, (0.155, 0.185, 0.205, 0.212, 0.205), 0.10, 0.06, 0.10),
        head=Plate(0.0, 0.13, (0.120, 0.145, 0.160, 0.160), 0.35, 0.05, 0.06),
        eye=(0.128, 0.072, 0.034),
        limbs=Limbs(
            ((0.14, 0.24), (0.17, 0.42), (0.16, 0.54)),
            (-44, 14, 50),
            (0.17, 0.16, 0.10),
            0.032,
            (0.070, 0.030),
            ((-64, 0.4), (-36, 0.6)),
            0.26,
            "toothed",
        ),
        striae=5,
        groove=0.0034,
        pits=0.0030,
        shine=1.15,
    ),
    "Rostrina": Anatomy(
        elytra=Plate(0.425, 1.0, (0.165, 0.225, 0.265, 0.275, 0.250, 0.19), 0.16, 0.50, 0.23),
        pronotum=Plate(0.265, 0.445, (0.105, 0.135, 0.150, 0.150, 0.140), 0.12, 0.10, 0.10),
        head=Plate(0.155, 0.295, (0.055, 0.075, 0.095, 0.105), 0.20, 0.05, 0.08),
        eye=(0.070, 0.200, 0.022),
        limbs=Limbs(
            ((0.11, 0.35), (0.17, 0.50), (0.17, 0.60)),
            (-40, 10, 44),
            (0.21, 0.20, 0.12),
            0.042,
            (0.030, 0.075),
            ((8, 0.42), (-72, 0.58)),
            0.30,
            "club",
        ),
        striae=6,
        groove=0.0045,
        pits=0.0045,
        shine=0.75,
        size=0.96,
        extra=(Plate(0.0, 0.20, (0.044, 0.036, 0.036, 0.044, 0.060), 0.25, 0.1, 0.05),),
    ),
}


def _smooth(values: tuple[float, ...], t: Array) -> Array:
    """Catmull-Rom curve through ``values`` at equal steps of t in 0..1."""
    v = np.asarray(values, np.float32)
    v = np.concatenate([[2 * v[0] - v[1]], v, [2 * v[-1] - v[-2]]])
    s = np.clip(t, 0, 1) * (len(values) - 1)
    i = np.minimum(s.astype(int), len(values) - 2)
    f = s - i
    a, b, c, d = v[i], v[i + 1], v[i + 2], v[i + 3]
    return b + 0.5 * f * (c - a + f * (2 * a - 5 * b + 4 * c - d + f * (3 * (b - c) + d - a)))


def _rounded(t: Array, front: float, back: float) -> Array:
    """1 in the middle, falling to 0 at both ends along a quarter of a (super)ellipse."""
    power = 2.2
    a = 1 - np.clip(t / front, 0, 1)
    b = 1 - np.clip((1 - t) / back, 0, 1)
    return (np.clip(1 - a**power, 0, 1) * np.clip(1 - b**power, 0, 1)) ** (1 / power)


@cache
def landmarks(genus: str) -> dict[str, Point]:
    """Named points on the body (not the limbs) in body frame."""
    body = BODIES[genus]
    wing, neck = body.elytra, body.pronotum

    def wide(plate: Plate, t: float) -> Point:
        y = plate.top + t * (plate.bottom - plate.top)
        return float(plate.half_width(np.array(y))), y

    sx, sy = wide(wing, 0.12)
    mx, my = wide(wing, 0.5)
    return {
        "snout": (0.0, min(plate.top for plate in (body.head, *body.extra)) + 0.01),
        "left eye": (-body.eye[0], body.eye[1]),
        "right eye": (body.eye[0], body.eye[1]),
        "pronotum": (0.0, (neck.top + neck.bottom) / 2),
        "left shoulder": (-sx * 0.9, sy),
        "right shoulder": (sx * 0.9, sy),
        "left wing case": (-mx / 2, my),
        "right wing case": (mx / 2, my),
        "seam": (0.0, my),
        "tail": (0.0, max(plate.bottom for plate in (wing, *body.extra)) - 0.01),
    }


@cache
def outline(genus: str) -> Array:
    """Points [n, 2] on the body's outline, to know how much room it needs."""
    body = BODIES[genus]
    found = []
    for plate in (*body.extra, body.elytra, body.head, body.pronotum):
        y = np.linspace(plate.top, plate.bottom, 14)[1:-1]
        w = plate.half_width(y)
        ends = np.array([[0.0, plate.top], [0.0, plate.bottom]])
        found += [np.stack([w, y], 1), np.stack([-w, y], 1), ends]
    return np.concatenate(found)
