"""A body's surface: what its plates look like from above, before light and colour."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from fieldmark.data.lookalikes.anatomy import BODIES, Array, Plate

#: The margins of the arrays around the body: x from -HALF to HALF, y from -TOP to 1 + TOP.
HALF, TOP = 0.46, 0.03


@dataclass(frozen=True)
class Relief:
    """A body's surface at ``density`` pixels a body length; every array is [height, width], float32.

    ``x`` [1, width] and ``y`` [height, 1] are the pixels' places in body frame; ``normal`` [3, height,
    width] points out of the surface; ``cover`` is the body's opacity; ``shade`` darkens folds and rims;
    ``tone`` varies the colour; ``eye`` is where eyes are; ``ink`` is a drawing's outline; ``u`` and ``t``
    run across (-1..1) and along (0..1) the wing cases; ``wing`` and ``pronotum`` are those plates' visible
    parts; ``grain`` is smooth noise.
    """

    density: float
    x: Array
    y: Array
    normal: Array
    cover: Array
    shade: Array
    tone: Array
    eye: Array
    ink: Array
    u: Array
    t: Array
    wing: Array
    pronotum: Array
    grain: Array


def _blur(a: Array, radius: float) -> Array:
    image = Image.fromarray(np.uint8(np.clip(a, 0, 1) * 255))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def _noise(shape: tuple[int, int], cells: int, seed: int) -> Array:
    """Smooth noise, about -1..1, with ``cells`` bumps along the longer side."""
    rng = np.random.default_rng(seed)
    small = rng.random((cells, max(2, round(cells * shape[1] / shape[0]))), np.float32)
    image = Image.fromarray(small).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) * 2 - 1


def _cover(plate: Plate, x: Array, y: Array, density: float) -> Array:
    """The plate's opacity, smoothed over pixels (three rows a pixel)."""
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    for shift in (-0.33, 0.0, 0.33):
        w = plate.half_width(y + shift / density)
        total += np.clip((w - np.abs(x)) * density + 0.5, 0, 1) * (w > 0)
    return total / 3


def _normal(z: Array, density: float) -> Array:
    dy, dx = np.gradient(z, 1 / density)
    n = np.stack([-dx, -dy, np.ones_like(z)])
    return n / np.sqrt((n * n).sum(0))


def relief(genus: str, density: float) -> Relief:
    """The surface of a genus at ``density`` pixels a body length (kept: few of the large ones)."""
    return (_few if density > 400 else _many)(genus, density)


def _relief(genus: str, density: float) -> Relief:
    body = BODIES[genus]
    rows, columns = round((1 + 2 * TOP) * density), round(2 * HALF * density)
    y = ((np.arange(rows, dtype=np.float32) + 0.5) / density - TOP)[:, None]
    x = ((np.arange(columns, dtype=np.float32) + 0.5) / density - HALF)[None, :]
    shape = (rows, columns)
    cover, shade, tone, eye, ink, wing, pronotum = (np.zeros(shape, np.float32) for _ in range(7))
    tone += 1
    normal = np.zeros((3, *shape), np.float32)
    normal[2] = 1
    hair = max(0.0065, 1.1 / density)
    grain = 0.6 * _noise(shape, 12, 3) + 0.4 * _noise(shape, 40, 4)
    pits = np.maximum(0, _noise(shape, 110, 5)) ** 2
    wing_u = np.zeros(shape, np.float32)
    wing_t = np.clip((y - body.elytra.top) / (body.elytra.bottom - body.elytra.top), 0, 1) + 0 * x
    for plate in (*body.extra, body.elytra, body.head, body.pronotum):
        w = np.maximum(plate.half_width(y), 1e-4)
        u = np.clip(np.abs(x) / w, 0, 1)
        is_wing = plate is body.elytra
        z = plate.height * np.sqrt(1 - u**2.3) * (w / max(plate.widths)) ** 0.75
        if is_wing:
            wing_u = np.clip(x / w, -1, 1)
            across = np.clip(np.abs(x) / np.maximum(w, 0.4 * max(plate.widths)), 0, 1)
            fade = (
                np.clip((0.97 - u) * 8, 0, 1) * np.clip(wing_t * 12, 0, 1) * np.clip((1 - wing_t) * 6, 0, 1)
            )
            if body.striae:
                z = z - body.groove * fade * np.cos(across * body.striae * np.pi) ** 2
            z = z - body.pits * pits * fade - 0.006 * np.exp(-((x / 0.008) ** 2))
            z = z + 0.010 * np.exp(-(((u - 0.62) / 0.2) ** 2) - ((wing_t - 0.08) / 0.07) ** 2)  # shoulders
        else:
            z = z - 0.45 * body.pits * pits
            if plate is body.pronotum:
                z = z - 0.0016 * np.exp(-((x / 0.010) ** 2)) * np.clip((1 - u) * 3, 0, 1)
        a = _cover(plate, x, y, density)
        n = _normal(z.astype(np.float32), density)
        edge = (w - np.abs(x)) / np.sqrt(1 + np.minimum(np.abs(np.gradient(w, axis=0) * density), 6) ** 2)
        end = np.minimum(y - plate.top, plate.bottom - y)
        inside = np.maximum(np.minimum(edge, end * 1.0), 0)
        fold = 1 - 0.42 * np.exp(-inside / 0.010) - 0.10 * np.exp(-inside / 0.05)
        line = np.exp(-((inside / hair) ** 2))
        if is_wing:
            fold = fold * (1 - 0.55 * np.exp(-((x / 0.0075) ** 2)))
            line = np.maximum(line, np.exp(-((x / (0.7 * hair)) ** 2)))
            if body.striae:
                stria = fade * np.cos(across * body.striae * np.pi) ** 8
                fold, line = fold * (1 - 0.25 * stria), np.maximum(line, 0.35 * stria)
        cast = 1 - 0.55 * _blur(a, 0.018 * density)  # what lies below is dark where this plate overhangs it
        shade = shade * cast * (1 - a) + fold * a
        normal = normal * (1 - a) + n * a
        for field_, value in ((tone, plate.tone), (ink, line)):
            field_ *= 1 - a
            field_ += a * value
        wing, pronotum = wing * (1 - a), pronotum * (1 - a)
        wing = wing + a if is_wing else wing
        pronotum = pronotum + a if plate is body.pronotum else pronotum
        cover = np.maximum(cover, a)
        if plate is body.head:
            normal, eye, shade = _eyes(body.eye, x, y, density, normal, eye, shade)
        eye = eye * (1 - a) if plate is body.pronotum else eye
    normal /= np.sqrt((normal * normal).sum(0))
    cover = np.maximum(cover, eye)
    fields = (normal, cover, shade, tone, eye, ink, wing_u, wing_t, wing, pronotum, grain)
    return Relief(density, x, y, *(np.ascontiguousarray(f, np.float32) for f in fields))


_many, _few = lru_cache(maxsize=24)(_relief), lru_cache(maxsize=4)(_relief)


def _eyes(
    eye: tuple[float, float, float],
    x: Array,
    y: Array,
    density: float,
    normal: Array,
    mask: Array,
    shade: Array,
) -> tuple[Array, Array, Array]:
    cx, cy, r = eye
    for side in (-1, 1):
        dx, dy = np.broadcast_arrays((x - side * cx) / r, (y - cy) / (1.25 * r))
        d = np.sqrt(dx * dx + dy * dy)
        a = np.clip((1 - d) * r * density + 0.5, 0, 1)
        dome = np.stack([np.clip(dx, -1, 1), np.clip(dy, -1, 1), np.sqrt(np.clip(1 - d * d, 0.05, 1))])
        dome /= np.sqrt((dome * dome).sum(0))
        normal = normal * (1 - a) + dome * a
        shade = shade * (1 - a) + a
        mask = np.maximum(mask, a)
    return normal, mask, shade
