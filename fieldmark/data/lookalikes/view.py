"""How a specimen is seen: its heading, its distance, its place in the frame, the light."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np
from PIL import Image

from fieldmark.data.lookalikes.anatomy import Array, Point, outline
from fieldmark.data.lookalikes.draw import Sprite
from fieldmark.data.lookalikes.limbs import planes


@dataclass(frozen=True)
class View:
    """The nuisance of one picture. Angles in degrees, lengths as parts of the picture's side."""

    rotation: float  # 0 = head up, positive = clockwise
    length: float  # of the body
    tilt: float
    tilt_axis: float
    room_x: float  # where in the free room the beetle lies, 0..1
    room_y: float
    light: float  # direction the light comes from: 0 = from the top, positive = from the right
    elevation: float
    sun: float
    exposure: float
    warmth: float
    falloff: float
    blur: float  # radius
    noise: float  # standard deviation, of 255


def look(rng: np.random.Generator, relative: float) -> View:
    """Draw a view; ``relative`` is the genus' size."""
    return View(
        rotation=rng.uniform(-180, 180),
        length=relative * rng.uniform(0.46, 0.66),
        tilt=rng.uniform(0, 22),
        tilt_axis=rng.uniform(0, 360),
        room_x=rng.random(),
        room_y=rng.random(),
        light=rng.choice((-1, 1)) * rng.uniform(15, 70),
        elevation=rng.uniform(38, 62),
        sun=rng.uniform(0.8, 1.25),
        exposure=float(np.exp(rng.normal(0, 0.10))),
        warmth=rng.normal(0, 0.05),
        falloff=rng.uniform(0.05, 0.35),
        blur=max(0.0, rng.uniform(-0.0025, 0.0030)),
        noise=rng.uniform(0.5, 5.0),
    )


def density_for(view: View, size: int) -> float:
    """Pixels a body length to draw the sprite at: too fine by a little; few steps, to share reliefs."""
    steps = (0.49, 0.56, 0.63, 0.70)
    return size * next((step for step in steps if step >= 1.05 * view.length), steps[-1])


def settle(view: View, genus: str, points: dict[str, Point], size: int) -> tuple[Array, float]:
    """The matrix [3, 3] from body frame to the picture's pixels, and the body's length as a part of its side.

    Turned, tilted in perspective, placed so that body, knees and antennae (``points``) are inside the frame.
    """
    turn, axis, tilt = radians(view.rotation), radians(view.tilt_axis), radians(view.tilt)
    centre = np.array([[1, 0, 0], [0, 1, -0.5], [0, 0, 1]])
    rotate = np.array([[cos(turn), -sin(turn), 0], [sin(turn), cos(turn), 0], [0, 0, 1]])
    to_axis = np.array([[cos(axis), sin(axis), 0], [-sin(axis), cos(axis), 0], [0, 0, 1]])
    lean = np.array([[1, 0, 0], [0, cos(tilt), 0], [0, sin(tilt) / 3.5, 1]])
    shape = to_axis.T @ lean @ to_axis @ rotate @ centre
    tips = [point for label, point in points.items() if "antenna" in label or "knee" in label]
    edge = project(shape, np.concatenate([outline(genus), np.array(tips)]))
    low, high = edge.min(0), edge.max(0)
    margin = 0.03 * size
    scale = min(view.length * size, float((size - 2 * margin) / (high - low).max()))
    room = np.maximum(size - 2 * margin - (high - low) * scale, 0)
    # not in the outermost corners: the free room is used up to two thirds
    shift = margin - low * scale + room * (1 / 6 + np.array([view.room_x, view.room_y]) * 2 / 3)
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1]]) @ shape, scale / size


def project(matrix: Array, points: Array) -> Array:
    """Points [n, 2] through a [3, 3] matrix."""
    p = np.concatenate([points, np.ones((len(points), 1))], 1) @ matrix.T
    return p[:, :2] / p[:, 2:]


def warp(one: Sprite, matrix: Array, size: int) -> tuple[Array, Array]:
    """The sprite in the picture: pixels [4, size, size] and the mark's opacity [size, size], uint8."""
    ox, oy = one.origin
    to_picture = matrix @ np.array([[1, 0, -ox], [0, 1, -oy], [0, 0, one.density]]) / one.density
    high, wide = one.mark.shape
    corners = project(to_picture, np.array([[0, 0], [wide, 0], [0, high], [wide, high]], float))
    left, top = np.maximum(np.floor(corners.min(0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(corners.max(0)), size).astype(int)
    window = slice(top, bottom), slice(left, right)
    to_sprite = np.linalg.inv(to_picture) @ np.array([[1, 0, left], [0, 1, top], [0, 0, 1]])
    data = tuple(float(v) for v in (to_sprite / to_sprite[2, 2]).ravel()[:8])
    extent, way, soft = (right - left, bottom - top), Image.Transform.PERSPECTIVE, Image.Resampling.BILINEAR
    pixels, mark = np.zeros((4, size, size), np.uint8), np.zeros((size, size), np.uint8)
    four = Image.merge("CMYK", [Image.fromarray(plane) for plane in one.pixels])  # see limbs.draw_limbs
    pixels[:, window[0], window[1]] = planes(four.transform(extent, way, data, soft))
    mark[window] = np.asarray(Image.fromarray(one.mark).transform(extent, way, data, soft))
    return pixels, mark
