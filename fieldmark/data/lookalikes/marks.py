"""Where each mark lies on a body: opacity fields over the relief. Marks on limbs are drawn with the limbs.

Lengths are in body lengths of a genus of size 1; ``scale`` is larger for genera that are drawn smaller. A
body of size 1 is at least 0.46 of the picture's side, so that the smallest mark, 0.10 long, is more than 4%
of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fieldmark.data.lookalikes.anatomy import Array
from fieldmark.data.lookalikes.relief import Relief

Rng = np.random.Generator


def paint(mark: str, s: Relief, rng: Rng, scale: float = 1.0) -> Array:
    """The mark's opacity over the relief, [height, width] in 0..1; all 0 for a mark on the limbs.

    ``rng`` varies its size (by a tenth), place and edge from one specimen to the next.
    """
    size, dx, dy = scale * rng.uniform(0.94, 1.10), rng.normal(0, 0.02), rng.normal(0, 0.010)
    wobble = np.roll(s.grain, tuple(rng.integers(0, s.grain.shape)), (0, 1)) * 0.006
    if mark not in _FIELDS:
        return np.zeros_like(s.cover)
    inside, plate = _FIELDS[mark](s, size, dx, dy)
    return np.clip((inside + wobble) * min(s.density, 130.0) + 0.5, 0, 1) * plate


def _half_width(s: Relief) -> Array:
    """Half width of the wing cases in every row (from the ratio of x and u), as [height, 1]."""
    column = s.x.shape[1] * 5 // 8
    return np.abs(s.x[0, column]) / np.clip(np.abs(s.u[:, column : column + 1]), 0.1, 1)


def _length(s: Relief, t: float) -> Array:
    """y where the wing cases' t is that."""
    rows = s.t[:, 0]
    return np.interp(t, rows[(rows > 0) & (rows < 1)], s.y[(rows > 0) & (rows < 1), 0])


def _spots(s: Relief, u: float, t: float, radius: float, dy: float, tall: float = 1.0) -> Array:
    y = _length(s, t) + dy
    w = np.interp(y, s.y[:, 0], _half_width(s)[:, 0])
    return radius - np.hypot(np.abs(s.x) - u * w, (s.y - y) / tall)


def _band(s: Relief, size: float, dx: float, dy: float) -> tuple[Array, Array]:
    wave = 0.012 * np.cos(s.u * 7) - 0.02 * s.u**2
    return 0.045 * size - np.abs(s.y - _length(s, 0.48) - dy - wave), s.wing


def _two_spots(s: Relief, size: float, dx: float, dy: float) -> tuple[Array, Array]:
    return _spots(s, 0.52 + dx, 0.36, 0.053 * size, dy), s.wing


def _rear_spots(s: Relief, size: float, dx: float, dy: float) -> tuple[Array, Array]:
    return _spots(s, 0.46 + dx, 0.72, 0.053 * size, dy), s.wing


def _edge(s: Relief, size: float, dx: float, dy: float) -> tuple[Array, Array]:
    return 0.045 * size - (_half_width(s) - np.abs(s.x)), s.wing * np.clip((0.94 - s.t) * 25, 0, 1)


def _tail(s: Relief, size: float, dx: float, dy: float) -> tuple[Array, Array]:
    return s.y - (_length(s, 0.999) - 0.125 * size) - 0.02 * s.u**2, s.wing


def _shoulders(s: Relief, size: float, dx: float, dy: float) -> tuple[Array, Array]:
    return _spots(s, 0.66, 0.15, 0.052 * size, 0.3 * dy, 1.2), s.wing


def _seam(s: Relief, size: float, dx: float, dy: float) -> tuple[Array, Array]:
    return 0.040 * size * (1.1 - 0.5 * s.t) - np.abs(s.x), s.wing * np.clip((0.93 - s.t) * 25, 0, 1)


def _collar(s: Relief, size: float, dx: float, dy: float) -> tuple[Array, Array]:
    top = s.y[np.argmax(s.pronotum.max(1) > 0.5), 0]
    return 0.068 * size - (s.y - top) + 0.015 * (s.x / 0.15) ** 2, s.pronotum


def _dot(s: Relief, size: float, dx: float, dy: float) -> tuple[Array, Array]:
    rows = np.flatnonzero(s.pronotum.max(1) > 0.5)
    y = (s.y[rows[0], 0] + s.y[rows[-1], 0]) / 2 + 0.5 * dy
    return 0.055 * size - np.hypot(s.x - 0.3 * dx, (s.y - y) / 0.95), s.pronotum


def _chevron(s: Relief, size: float, dx: float, dy: float) -> tuple[Array, Array]:
    px, py = np.abs(s.x), s.y - (_length(s, 0.62) + dy)
    ex, ey = 0.125 * size, -0.095 * size  # the arm's end, from the point of the V
    along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
    return 0.034 * size - np.hypot(px - along * ex, py - along * ey), s.wing


_FIELDS: dict[str, Callable[[Relief, float, float, float], tuple[Array, Array]]] = {
    "band": _band,
    "spots": _two_spots,
    "pronotum dot": _dot,
    "edge": _edge,
    "tail": _tail,
    "shoulders": _shoulders,
    "seam": _seam,
    "collar": _collar,
    "rear spots": _rear_spots,
    "chevron": _chevron,
}
