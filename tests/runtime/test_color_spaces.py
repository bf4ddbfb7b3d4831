"""Each colour space against its formula, written out by hand."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fieldmark.runtime.preprocess import Preprocess


def far(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, in levels of 255."""
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max())


def colours() -> np.ndarray:
    """[24, 24, 3]: greys, primaries and random colours."""
    values = np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8)
    values[0] = (np.arange(24) * 11)[:, None]
    values[1, :8] = np.array([[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)])
    return values


def in_space(space: str) -> np.ndarray:
    values = colours()
    return Preprocess(size=24, color_space=space, interpolation="nearest").pixels(Image.fromarray(values))


def test_rgb_is_kept():
    np.testing.assert_array_equal(in_space("rgb"), colours())


def test_grey():
    """Luma of ITU-R BT.601, in three equal channels."""
    luma = colours() @ np.array([0.299, 0.587, 0.114])
    assert far(in_space("grey"), luma[..., None].repeat(3, -1)) <= 1


def test_ycbcr():
    """Full range, as in JPEG (ITU-T T.871)."""
    r, g, b = np.moveaxis(colours().astype(float), -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    expected = np.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], -1)
    assert far(in_space("ycbcr"), expected.clip(0, 255)) <= 1


def test_hsv():
    """Smith's hexcone (1978): hue in 256ths of a turn."""
    r, g, b = np.moveaxis(colours() / 255, -1, 0)
    value, chroma = np.maximum(np.maximum(r, g), b), np.ptp(colours() / 255, axis=-1)
    safe = np.where(chroma > 0, chroma, 1)
    hue = np.select([value == r, value == g], [(g - b) / safe % 6, (b - r) / safe + 2], (r - g) / safe + 4)
    hue = np.where(chroma > 0, hue / 6, 0)
    saturation = chroma / np.where(value > 0, value, 1)
    ours = in_space("hsv").astype(float)
    turn = np.abs(ours[..., 0] - 255 * hue)
    assert np.minimum(turn, 255 - turn).max() < 1.01
    assert far(ours[..., 1], 255 * saturation) <= 1 and far(ours[..., 2], 255 * value) <= 1


def test_lab():
    """sRGB (IEC 61966-2-1) adapted to D50 by Bradford's matrix, then CIE 1976; L * 2.55, a and b + 128."""
    v = colours() / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    to_d50 = np.array(
        [
            [0.4360747, 0.3850649, 0.1430804],
            [0.2225045, 0.7168786, 0.0606169],
            [0.0139322, 0.0971045, 0.7141733],
        ]
    )
    xyz = linear @ to_d50.T / np.array([0.96422, 1.0, 0.82521])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    light = 116 * f[..., 1] - 16
    expected = np.stack(
        [light * 2.55, 128 + 500 * (f[..., 0] - f[..., 1]), 128 + 200 * (f[..., 1] - f[..., 2])], -1
    )
    assert far(in_space("lab"), expected.clip(0, 255)) <= 1
    grey = in_space("lab")[0]
    assert far(grey[:, 1:], 128) <= 1, "neutral colours sit at 128"
