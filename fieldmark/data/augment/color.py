"""Brightness, contrast and hue of an RGB photo: the bytes of torchvision's functions on Pillow images.

Those blend, split and merge with Python's lock held (Pillow 12), so that the threads of a loader wait for each other,
which is what a quick GPU then waits for. Tables and conversions of the whole picture let the others work. Saturation
stays torchvision's: its one blend is short, and in numpy it would take five times as long.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageStat


def adjust_brightness(image: Image.Image, factor: float) -> Image.Image:
    """Every value times the factor."""
    return image.point(_table(0, factor))


def adjust_contrast(image: Image.Image, factor: float) -> Image.Image:
    """Every value's distance to the mean grey, rounded, times the factor."""
    mean = ImageStat.Stat(image.convert("L")).mean[0]
    return image.point(_table(int(mean + 0.5), factor))


def adjust_hue(image: Image.Image, turn: float) -> Image.Image:
    """Hues moved by this share of the colour circle, from -0.5 to 0.5."""
    hsv = np.array(image.convert("HSV"))
    hsv[:, :, 0] += np.int32(turn * 255).astype(np.uint8)  # beyond 255 it begins anew
    return Image.frombuffer("HSV", image.size, hsv, "raw", "HSV", 0, 1).convert("RGB")


def _table(start: int, factor: float) -> list[int]:
    """start + factor (value - start) for each of 256 values of three channels, in single precision, cut to bytes."""
    values = np.float32(start) + np.float32(factor) * (np.arange(256, dtype=np.float32) - start)
    return 3 * values.clip(0, 255).astype(np.uint8).tolist()
