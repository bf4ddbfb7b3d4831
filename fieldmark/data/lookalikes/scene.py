"""A picture of one specimen: where it sits, how it is lit, what is in front of it; and all that is known about it.

Picture ``index`` of a species depends on nothing but (seed, species, index): colours, pose, mark, view, background
and cover each have a random stream of their own, so that changing one leaves the others as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import cos, radians, sin
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from fieldmark.data.lookalikes import background, cover
from fieldmark.data.lookalikes.anatomy import BODIES, Array, landmarks, outline
from fieldmark.data.lookalikes.draw import Sprite, specimen, sprite
from fieldmark.data.lookalikes.species import Species, mark
from fieldmark.runtime.errors import UsageError

#: The smallest and the largest picture's side in pixels.
SIZES = (64, 1024)
STYLES = ("photo", "drawing")
#: At least this part of the mark's pixels stays uncovered.
VISIBLE = 0.6

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class View:
    """The nuisance of one picture. Angles in degrees, lengths as parts of the picture's side."""

    rotation: float  # 0 = head up, positive = clockwise
    length: float  # of the body
    tilt: float
    tilt_axis: float
    x: float  # where in the free room the body lies, 0..1
    y: float
    light: float  # direction the light comes from: 0 = from the top, positive = from the right
    elevation: float
    sun: float
    exposure: float
    warmth: float
    falloff: float
    blur: float  # radius
    noise: float  # standard deviation, of 255


@dataclass(frozen=True)
class Picture:
    """A rendered picture and its truth. Boxes are (x, y, width, height) in pixels.

    ``mark_mask`` and ``object_mask`` (the whole beetle) are [size, size] bool, what is visible; the boxes enclose
    them. ``parts`` maps a name to (x, y, visible). ``attributes`` describe the beetle, ``nuisance`` all the rest.
    """

    image: Image.Image
    species: Species
    mark_box: Box
    body_box: Box
    parts: dict[str, tuple[float, float, bool]]
    mark_mask: Array
    object_mask: Array
    attributes: dict[str, str]
    caption: str
    nuisance: dict[str, Any]


def render(
    species: Species,
    index: int,
    *,
    size: int = 256,
    seed: int = 0,
    shortcut: str | None = None,
    style: str = "photo",
    mark: str | None = None,
) -> Picture:
    """Render picture ``index`` of a species, ``size`` pixels a side.

    ``shortcut`` names the background (one of ``background.NAMES``) instead of a random one. ``style`` is "photo" or
    "drawing". ``mark`` draws another mark than the species' own on the very same picture (a counterfactual twin).
    """
    if not SIZES[0] <= size <= SIZES[1]:
        raise UsageError(f"look-alikes: size {size} is not between {SIZES[0]} and {SIZES[1]} pixels")
    if style not in STYLES:
        raise UsageError(f'look-alikes: style "{style}" is unknown, choose one of {", ".join(STYLES)}')
    if shortcut is not None and shortcut not in background.NAMES:
        raise UsageError(f'look-alikes: background "{shortcut}" is unknown, e.g. "{background.NAMES[0]}"')
    streams = np.random.SeedSequence(seed, spawn_key=(species.number, index)).spawn(7)
    one_of = specimen(species.genus, mark or species.mark, streams[:4])
    view = _view(np.random.default_rng(streams[4]), BODIES[species.genus].size)
    ground_rng = np.random.default_rng(streams[5])
    place = shortcut or str(ground_rng.choice(background.NAMES))

    azimuth = radians(view.light - 90)  # in the picture: 0 = from the right, -90 = from the top
    light = _unit(cos(azimuth), sin(azimuth), np.tan(radians(view.elevation)))
    in_body = _unit(*_turn(light[0], light[1], -radians(view.rotation)), light[2])
    density = _density(view.length, size)
    one = sprite(one_of, density, in_body, view.sun, style)
    matrix = _place(view, one_of.genus, one, size)
    beetle, mark_cover = _warp(one, matrix, size)
    alpha = beetle[..., 3]
    ground = background.ground(ground_rng, place, size, light[0] > 0, style)
    blade = cover.choose(np.random.default_rng(streams[6]), mark_cover, alpha, size, VISIBLE, style)
    image = _compose(ground, beetle, blade, light, view, style)
    hidden = np.zeros((size, size), bool) if blade is None else np.asarray(blade.getchannel("A")) > 127
    mark_mask, object_mask = (mark_cover > 127) & ~hidden, (alpha > 127) & ~hidden
    attributes = {**species.attributes, "colour": one_of.coat, "mark_colour": one_of.pigment}
    attributes |= {"fore_colour": one_of.fore, "leg_colour": one_of.legs}
    if mark is not None:
        attributes |= _mark_words(mark)
    nuisance = {name: round(float(value), 4) for name, value in vars(view).items()}
    nuisance |= {"background": place, "style": style, "occluded": blade is not None}
    nuisance["mark_visible"] = round(float(mark_mask.sum() / max(1, (mark_cover > 127).sum())), 4)
    return Picture(
        image,
        species,
        _box(mark_mask),
        _box(object_mask),
        _parts(one_of.genus, one, matrix, hidden, size),
        mark_mask,
        object_mask,
        attributes,
        _caption(attributes, place, style),
        nuisance,
    )


def _view(rng: np.random.Generator, relative: float) -> View:
    return View(
        rotation=rng.uniform(-180, 180),
        length=relative * rng.uniform(0.46, 0.66),
        tilt=rng.uniform(0, 22),
        tilt_axis=rng.uniform(0, 360),
        x=rng.random(),
        y=rng.random(),
        light=rng.choice((-1, 1)) * rng.uniform(15, 70),
        elevation=rng.uniform(38, 62),
        sun=rng.uniform(0.8, 1.25),
        exposure=float(np.exp(rng.normal(0, 0.10))),
        warmth=rng.normal(0, 0.05),
        falloff=rng.uniform(0.05, 0.35),
        blur=max(0.0, rng.uniform(-0.0025, 0.0030)),
        noise=rng.uniform(0.5, 5.0),
    )


def _unit(x: float, y: float, z: float) -> Array:
    v = np.array([x, y, z], np.float32)
    return v / np.linalg.norm(v)


def _turn(x: float, y: float, angle: float) -> tuple[float, float]:
    return x * cos(angle) - y * sin(angle), x * sin(angle) + y * cos(angle)


def _density(length: float, size: int) -> float:
    """Pixels a body length to draw the sprite at: one of few steps (so that reliefs are shared), a little too fine."""
    steps = (0.62, 0.74, 0.88, 1.04)
    return size * next((step for step in steps if step >= 1.2 * length), steps[-1])


def _place(view: View, name: str, one: Sprite, size: int) -> Array:
    """The matrix [3, 3] from body frame to the picture's pixels: turned, tilted in perspective, inside the frame."""
    turn, axis, tilt = radians(view.rotation), radians(view.tilt_axis), radians(view.tilt)
    centre = np.array([[1, 0, 0], [0, 1, -0.5], [0, 0, 1]])
    rotate = np.array([[cos(turn), -sin(turn), 0], [sin(turn), cos(turn), 0], [0, 0, 1]])
    to_axis = np.array([[cos(axis), sin(axis), 0], [-sin(axis), cos(axis), 0], [0, 0, 1]])
    lean = np.array([[1, 0, 0], [0, cos(tilt), 0], [0, sin(tilt) / 3.5, 1]])
    shape = to_axis.T @ lean @ to_axis @ rotate @ centre
    tips = [point for label, point in one.points.items() if "antenna" in label or "knee" in label]
    edge = project(shape, np.concatenate([outline(name), np.array(tips)]))
    low, high = edge.min(0), edge.max(0)
    margin = 0.03 * size
    scale = min(view.length * size, float((size - 2 * margin) / (high - low).max()))
    room = np.maximum(size - 2 * margin - (high - low) * scale, 0)
    # not in the outermost corners: the free room is used up to two thirds
    shift = margin - low * scale + room * (1 / 6 + np.array([view.x, view.y]) * 2 / 3)
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1]]) @ shape


def project(matrix: Array, points: Array) -> Array:
    """Points [n, 2] through a [3, 3] matrix."""
    p = np.concatenate([points, np.ones((len(points), 1))], 1) @ matrix.T
    return p[:, :2] / p[:, 2:]


def _warp(one: Sprite, matrix: Array, size: int) -> tuple[Array, Array]:
    """The sprite in the picture: pixels [size, size, 4] and the mark's opacity [size, size], uint8."""
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
    pixels, mark = np.zeros((size, size, 4), np.uint8), np.zeros((size, size), np.uint8)
    four = Image.frombuffer("CMYK", (wide, high), one.pixels, "raw", "CMYK", 0, 1)  # see limbs.draw_limbs
    pixels[window] = np.asarray(four.transform(extent, way, data, soft))
    mark[window] = np.asarray(Image.fromarray(one.mark).transform(extent, way, data, soft))
    return pixels, mark


def _compose(
    ground: Image.Image, beetle: Array, blade: Image.Image | None, light: Array, view: View, style: str
) -> Image.Image:
    """Ground, shadow, beetle, what is in front of it; then the lens and the sensor."""
    size = len(beetle)
    alpha = Image.fromarray(beetle[..., 3])
    drift = (-light[0] / light[2] * 0.035 * size, -light[1] / light[2] * 0.035 * size)
    soft = _shadow(alpha, drift, 0.020 * size, 4)
    close = _shadow(alpha, (drift[0] / 4, drift[1] / 4), 0.007 * size, 2)
    dark = (1 - 0.42 * soft) * (1 - 0.45 * close) if style == "photo" else 1 - 0.20 * soft
    out = np.asarray(ground, np.float32) * dark[..., None]
    _over(out, beetle)
    if blade is not None:
        above = _shadow(blade.getchannel("A"), (2 * drift[0], 2 * drift[1]), 0.022 * size, 4)
        out *= (1 - 0.4 * above)[..., None]
        _over(out, np.asarray(blade))
    if style != "photo":
        return Image.fromarray(np.uint8(np.clip(out, 0, 255)))
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    glow = 1 + view.falloff * (light[0] * ramp[None, :] + light[1] * ramp[:, None])
    glow -= 0.35 * view.falloff * (ramp[None, :] ** 2 + ramp[:, None] ** 2)
    gain = view.exposure * np.array([1 + view.warmth, 1, 1 - view.warmth], np.float32)
    out *= glow[..., None] * gain
    if view.blur * size > 0.3:
        soft_image = Image.fromarray(np.uint8(np.clip(out, 0, 255))).filter(
            ImageFilter.BoxBlur(1.4 * view.blur * size)
        )
        out = np.asarray(soft_image, np.float32)
    out = out + _grain(size, view)
    return Image.fromarray(np.uint8(np.clip(out, 0, 255)))


def _over(out: Array, pixels: Array) -> None:
    """Lay pixels [size, size, 4] over out [size, size, 3], in place, where there is anything."""
    x, y, w, h = _box(pixels[..., 3] > 0)
    window = slice(y, y + h), slice(x, x + w)
    part = pixels[window].astype(np.float32)
    out[window] += (part[..., :3] - out[window]) * (part[..., 3:] * np.float32(1 / 255))


def _shadow(alpha: Image.Image, shift: tuple[float, float], radius: float, shrink: int) -> Array:
    """The alpha, moved and blurred (at a smaller size), as [size, size] in 0..1."""
    small = alpha.reduce(shrink)
    data = (1, 0, -shift[0] / shrink, 0, 1, -shift[1] / shrink)
    small = small.transform(small.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    small = small.filter(ImageFilter.GaussianBlur(radius / shrink))
    return np.asarray(small.resize(alpha.size, Image.Resampling.BICUBIC), np.float32) * np.float32(1 / 255)


@lru_cache(maxsize=1)
def _static() -> Array:
    rng = np.random.default_rng(7)
    fine = rng.standard_normal((1024, 1024, 1), np.float32)
    return fine + 0.35 * rng.standard_normal((1024, 1024, 3), np.float32)


def _grain(size: int, view: View) -> Array:
    """The sensor's noise: a cut of one tile, at a place that the view decides."""
    x, y = (int(v * 7919) % (1025 - size) for v in (view.x, view.y))
    return _static()[y : y + size, x : x + size] * np.float32(view.noise)


def _box(mask: Array) -> Box:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


def _parts(
    name: str, one: Sprite, matrix: Array, hidden: Array, size: int
) -> dict[str, tuple[float, float, bool]]:
    points = {**landmarks(name), **{k: v for k, v in one.points.items() if "knee" not in k}}
    spots = project(matrix, np.array(list(points.values())))
    found = {}
    for label, (x, y) in zip(points, spots, strict=True):
        inside = 0 <= x < size and 0 <= y < size
        found[label] = (round(float(x), 2), round(float(y), 2), bool(inside and not hidden[int(y), int(x)]))
    return found


def _mark_words(name: str) -> dict[str, str]:
    return {"mark": name, "mark_kind": mark(name).kind, "mark_place": mark(name).place}


_THINGS = ("leaf", "petal", "dry leaf")


def _caption(attributes: dict[str, str], place: str, style: str) -> str:
    what = "A drawing of a" if style == "drawing" else "A"
    seen = mark(attributes["mark"]).phrase.format(attributes["mark_colour"])
    ground = place.rsplit(maxsplit=1)[0]
    where = "" if style == "drawing" else f" and sits on {'a ' if ground in _THINGS else ''}{ground}"
    return (
        f"{what} {attributes['colour']} beetle with a {attributes['body']} body, a {attributes['pronotum']} pronotum and "
        f"{attributes['antennae']} antennae; it has {seen}{where}."
    )
