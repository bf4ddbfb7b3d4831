"""Ground, shadow, beetle, what is in front of it; then the light's falloff, the lens and the sensor."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from fieldmark.data.lookalikes.anatomy import Array
from fieldmark.data.lookalikes.limbs import planes
from fieldmark.data.lookalikes.view import View

Box = tuple[int, int, int, int]


def compose(
    ground: Image.Image, beetle: Array, blade: Array | None, light: Array, view: View, style: str
) -> Image.Image:
    """Ground, shadow, beetle, what is in front of it; then the lens and the sensor."""
    size = beetle.shape[1]
    drift = (-light[0] / light[2] * 0.035 * size, -light[1] / light[2] * 0.035 * size)
    out = planes(ground).astype(np.float32)
    if style == "photo":
        near = _shadow(beetle, 0.25, drift, 0.007 * size, 2, 0.45)
        out *= _shadow(beetle, 1, drift, 0.020 * size, 4, 0.42) * near
    else:
        out *= _shadow(beetle, 1, drift, 0.020 * size, 4, 0.20)
    _over(out, beetle)
    if blade is not None:
        out *= _shadow(blade, 2, drift, 0.022 * size, 4, 0.40)
        _over(out, blade)
    if style == "photo":
        _expose(out, light, view)
    return _image(out)


def _image(out: Array) -> Image.Image:
    return Image.merge("RGB", [Image.fromarray(plane) for plane in np.clip(out, 0, 255).astype(np.uint8)])


def _expose(out: Array, light: Array, view: View) -> None:
    """Falloff, exposure, white balance, blur and noise, in place."""
    size = out.shape[1]
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    across = 1 + view.falloff * (light[0] * ramp - 0.35 * ramp**2)
    down = view.falloff * (light[1] * ramp - 0.35 * ramp**2)
    glow = across[None, :] + down[:, None]
    for plane, warm in zip(out, (1 + view.warmth, 1, 1 - view.warmth), strict=True):
        plane *= glow * np.float32(view.exposure * warm)
    if view.blur * size > 0.3:
        out[:] = planes(_image(out).filter(ImageFilter.BoxBlur(1.4 * view.blur * size)))
    x, y = (int(v * 7919) % (1025 - size) for v in (view.room_x, view.room_y))
    out += _static()[:, y : y + size, x : x + size] * np.float32(view.noise)


def _over(out: Array, pixels: Array) -> None:
    """Lay pixels [4, size, size] over out [3, size, size], in place, where there is anything."""
    x, y, w, h = box(pixels[3] > 0)
    part, below = pixels[:, y : y + h, x : x + w], out[:, y : y + h, x : x + w]
    below += (part[:3] - below) * (part[3] * np.float32(1 / 255))


def _shadow(
    pixels: Array, far: float, drift: tuple[float, float], radius: float, shrink: int, depth: float
) -> Array:
    """What light is left, [size, size]: 1 less ``depth`` in the shadow of pixels [4, size, size].

    The shadow lies ``far`` times ``drift`` away and is blurred, both at a ``shrink`` times smaller size.
    """
    small = Image.fromarray(pixels[3]).reduce(shrink)
    x, y = (-far * v / shrink for v in drift)
    small = small.transform(small.size, Image.Transform.AFFINE, (1, 0, x, 0, 1, y), Image.Resampling.BILINEAR)
    small = small.filter(ImageFilter.GaussianBlur(radius / shrink))
    shade = np.asarray(small.resize(pixels.shape[:0:-1], Image.Resampling.BILINEAR), np.float32)
    return 1 - np.float32(depth / 255) * shade


@lru_cache(maxsize=1)
def _static() -> Array:
    """A tile of sensor noise, mostly grey, [3, 1024, 1024]; every picture cuts a piece of it."""
    rng = np.random.default_rng(7)
    fine = rng.standard_normal((1, 1024, 1024), np.float32)
    return fine + 0.35 * rng.standard_normal((3, 1024, 1024), np.float32)


def box(mask: Array) -> Box:
    """The smallest box (x, y, width, height) around what is true; all 0 for nothing."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)
