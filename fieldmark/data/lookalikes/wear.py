"""What lies on a beetle by chance: dew drops, pollen, mud. It says nothing about the species."""

from __future__ import annotations

import numpy as np

from fieldmark.data.lookalikes.anatomy import Array
from fieldmark.data.lookalikes.relief import Relief

#: How often there is dew, and how often there is dust.
DEW, DUST = 0.30, 0.40
_DUSTS = ((0.80, 0.62, 0.10), (0.72, 0.68, 0.55), (0.12, 0.075, 0.040))


def litter(body: Array, s: Relief, rng: np.random.Generator, light: Array) -> None:
    """Add dew and dust to a body's linear colours [3, height, width], in place."""
    dew, dust = rng.random() < DEW, rng.random() < DUST
    spots = [_spot(rng) for _ in range(12)]
    for x, y in spots[: int(rng.integers(1, 6))] if dust else []:
        _grains(body, s, rng, x, y)
    for x, y in spots[6 : 6 + int(rng.integers(2, 6))] if dew else []:
        _drop(body, s, x, y, rng.uniform(0.012, 0.034), light)


def _spot(rng: np.random.Generator) -> tuple[float, float]:
    return rng.uniform(-0.24, 0.24), rng.uniform(0.12, 0.95)


def _patch(s: Relief, x: float, y: float, reach: float) -> tuple[slice, slice] | None:
    row, column = np.searchsorted(s.y[:, 0], y), np.searchsorted(s.x[0], x)
    pixels = int(reach * s.density) + 2
    if not (pixels < row < len(s.y) - pixels and pixels < column < s.x.shape[1] - pixels):
        return None
    return slice(row - pixels, row + pixels), slice(column - pixels, column + pixels)


def _drop(body: Array, s: Relief, x: float, y: float, r: float, light: Array) -> None:
    """A clear drop: dark towards the light, a bright crescent on the far side, one sharp glint."""
    window = _patch(s, x, y, r)
    if window is None or s.cover[window].min() < 0.9:
        return
    dx, dy = (s.x[:, window[1]] - x) / r, (s.y[window[0]] - y) / r
    d2 = dx * dx + dy * dy
    inside = np.clip((1 - np.sqrt(d2)) * r * s.density + 0.5, 0, 1)
    far = -(dx * light[0] + dy * light[1])
    glint = np.exp(-((dx - 0.8 * light[0]) ** 2 + (dy - 0.8 * light[1]) ** 2) / 0.035)
    patch = body[:, window[0], window[1]]
    lens = (
        patch * (0.55 + 1.1 * np.clip(far, 0, 1)) * (1 - 0.35 * d2**3)
        + 0.05 * np.clip(far, 0, 1)
        + 0.9 * glint
    )
    patch += (lens - patch) * inside


def _grains(body: Array, s: Relief, rng: np.random.Generator, x: float, y: float) -> None:
    """A pinch of dust: a few grains in a loose heap."""
    colour = np.array(_DUSTS[int(rng.integers(len(_DUSTS)))], np.float32) * rng.uniform(0.5, 1.1)
    reach = rng.uniform(0.015, 0.05)
    window = _patch(s, x, y, 1.6 * reach)
    count = int(rng.integers(3, 12))
    places, radii = rng.normal(0, 0.5 * reach, (count, 2)), rng.uniform(0.006, 0.016, count)
    if window is None:
        return
    px, py = s.x[:, window[1]] - x, s.y[window[0]] - y
    heap = np.zeros(np.broadcast_shapes(px.shape, py.shape), np.float32)
    for (gx, gy), r in zip(places, radii, strict=True):
        heap = np.maximum(heap, np.clip((r - np.hypot(px - gx, py - gy)) * s.density + 0.5, 0, 1))
    patch = body[:, window[0], window[1]]
    patch += (colour[:, None, None] * s.shade[window] - patch) * (0.9 * heap * s.cover[window])
