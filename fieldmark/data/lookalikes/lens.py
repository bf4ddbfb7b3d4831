"""Ground, shadow, beetle, what is in front of it; then the light's falloff, the lens and the sensor."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from fieldmark.data.lookalikes.anatomy import Array
from fieldmark.data.lookalikes.view import View

Box = tuple[int, int, int, int]


def compose(
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
    x, y, w, h = box(pixels[..., 3] > 0)
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
    x, y = (int(v * 7919) % (1025 - size) for v in (view.room_x, view.room_y))
    return _static()[y : y + size, x : x + size] * np.float32(view.noise)


def box(mask: Array) -> Box:
    """The smallest box (x, y, width, height) around what is true; all 0 for nothing."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)
