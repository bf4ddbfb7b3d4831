"""Where things of a photo lie in a view of it: what `augment` does to places, told without touching a pixel."""

from __future__ import annotations

import math

import numpy as np

from fieldmark.data.augment.settings import Augment
from fieldmark.runtime.preprocess import Preprocess

#: How often a box is drawn that may not fit.
TRIES = 10
Box = tuple[float, float, float, float]


def crop_box(size: tuple[int, int], rng: np.random.Generator, settings: Augment, stretch: bool) -> Box:
    """Left, top, right, bottom of a random box inside ``size`` (width, height), in fractions of pixels."""
    width, height = size
    # What a square of the whole photo's area has for sides; stretched, the photo itself is the square.
    unit = (float(width), float(height)) if stretch else (math.sqrt(width * height),) * 2
    for _ in range(TRIES):
        area = rng.uniform(*settings.scale)
        ratio = math.exp(rng.uniform(math.log(settings.ratio[0]), math.log(settings.ratio[1])))
        across, down = unit[0] * math.sqrt(area * ratio), unit[1] * math.sqrt(area / ratio)
        if across <= width and down <= height:
            break
    # After so many boxes that did not fit, the last one loses what hangs over.
    across, down = min(max(across, 1.0), width), min(max(down, 1.0), height)
    left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
    return (left, top, min(left + across, width), min(top + down, height))


def view_boxes(
    size: tuple[int, int],
    preprocess: Preprocess,
    rng: np.random.Generator,
    settings: Augment,
    boxes: np.ndarray,
) -> np.ndarray:
    """Where boxes of the photo lie in the view that `augment` makes of it with an equal ``rng``.

    size: of the photo, width and height; boxes: [K, 4] left, top, right, bottom as shares of its sides; what follows
    in further columns goes with its box. The answer is likewise of the view: float32, of the same shape, clipped to
    it. A row is NaN where the box lies outside, where nobody knows it, and where a policy may have turned or pushed
    the view.
    """
    found = np.array(boxes, np.float32)
    if settings.policy:
        found[:] = np.nan
        return found
    corners = found.astype(float)
    x, y = corners[:, [0, 2, 0, 2]] * size[0], corners[:, [1, 1, 3, 3]] * size[1]
    left, top, right, bottom = _frame(size, preprocess, rng, settings)
    x, y = (x - left) / (right - left), (y - top) / (bottom - top)
    if settings.flip and rng.random() < 0.5:
        x = 1 - x
    if settings.rotate:
        angle = math.radians(rng.uniform(-settings.rotate, settings.rotate))
        across, down = x - 0.5, y - 0.5
        x, y = (
            0.5 + math.cos(angle) * across + math.sin(angle) * down,
            0.5 - math.sin(angle) * across + math.cos(angle) * down,
        )
    found[:, :4] = np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], 1).clip(0, 1)
    found[~((found[:, 0] < found[:, 2]) & (found[:, 1] < found[:, 3]))] = np.nan
    return found


def shown(size: tuple[int, int], preprocess: Preprocess) -> Box:
    """What of a photo [width, height] the network sees: left, top, right, bottom in pixels; padding hangs over."""
    return _frame(size, preprocess, np.random.default_rng(0), Augment.none())


def _frame(size: tuple[int, int], preprocess: Preprocess, rng: np.random.Generator, settings: Augment) -> Box:
    """What of the photo the view shows, before it is flipped and turned: a box in pixels, which may hang over."""
    width, height = size
    side = max(size)
    left, top = (side - width) // 2, (side - height) // 2  # of the photo on its square, where it is padded
    if settings.crops:
        if preprocess.resize != "pad":
            return crop_box(size, rng, settings, stretch=preprocess.resize == "stretch")
        box = crop_box((side, side), rng, settings, stretch=False)
        return (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    if preprocess.resize == "stretch":
        return (0, 0, width, height)
    if preprocess.resize == "pad":
        return (-left, -top, side - left, side - top)
    inner = min(size) * preprocess.crop_pct
    return ((width - inner) / 2, (height - inner) / 2, (width + inner) / 2, (height + inner) / 2)
