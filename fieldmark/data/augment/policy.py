"""TrivialAugment and RandAugment with numpy's generator: which operation, how strong; torchvision executes it.

torchvision's own classes draw from torch's global generator, which threads would share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

#: Steps of every magnitude, from none to the most.
BINS = 31
#: RandAugment's number of operations and magnitude, as in torchvision.
RAND = (2, 9)

# Magnitudes by pixels of the side: (function, may be negative); None: the operation has none.
_Range = tuple[Callable[[int], np.ndarray], bool] | None


def _even(top: float) -> _Range:
    return (lambda side: np.linspace(0, top, BINS), True)


def _bits(fewer: int) -> _Range:
    return (lambda side: np.rint(8 - np.arange(BINS) / ((BINS - 1) / fewer)), False)


def _space(shear: float, shift: _Range, turn: float, light: float, fewer: int) -> dict[str, _Range]:
    return {
        "Identity": None,
        "ShearX": _even(shear),
        "ShearY": _even(shear),
        "TranslateX": shift,
        "TranslateY": shift,
        "Rotate": _even(turn),
        "Brightness": _even(light),
        "Color": _even(light),
        "Contrast": _even(light),
        "Sharpness": _even(light),
        "Posterize": _bits(fewer),
        "Solarize": (lambda side: np.linspace(1, 0, BINS), False),
        "AutoContrast": None,
        "Equalize": None,
    }


#: Operation -> its magnitudes: those of torchvision's TrivialAugmentWide and RandAugment. Translation is in
#: pixels for ``trivial``, in shares of the side for ``rand``.
SPACES: dict[str, dict[str, _Range]] = {
    "trivial": _space(0.99, _even(32.0), 135.0, 0.99, 6),
    "rand": _space(0.3, (lambda side: np.linspace(0, 150 / 331 * side, BINS), True), 30.0, 0.9, 4),
}


def policy(
    image: Image.Image,
    name: Literal["trivial", "rand"],
    rng: np.random.Generator,
    fill: Sequence[int] = (128, 128, 128),
) -> Image.Image:
    """A square RGB picture after one operation of any strength (``trivial``), or two of strength 9 (``rand``).

    ``fill``: RGB of what comes in from outside.
    """
    space = SPACES[name]
    operations = list(space)
    for _ in range(1 if name == "trivial" else RAND[0]):
        chosen = operations[rng.integers(len(operations))]
        magnitude, span = 0.0, space[chosen]
        if span is not None:
            values, signed = span
            step = int(rng.integers(BINS)) if name == "trivial" else RAND[1]
            magnitude = float(values(image.width)[step])
            if signed and rng.random() < 0.5:
                magnitude = -magnitude
        image = apply(image, chosen, magnitude, fill)
    return image


def apply(image: Image.Image, operation: str, magnitude: float, fill: Sequence[int]) -> Image.Image:
    """One operation on an RGB picture. Raises KeyError for one there is not."""
    return _APPLY[operation](image, magnitude, list(fill))


def _affine(image: Image.Image, fill: list[int], **change: object) -> Image.Image:
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    return F.affine(image, **{**still, **change}, interpolation=InterpolationMode.BILINEAR, fill=fill)


def _shear(image: Image.Image, fill: list[int], across: float, down: float) -> Image.Image:
    # Magnitudes are slopes; the left upper corner stays where it is.
    angles = [math.degrees(math.atan(across)), math.degrees(math.atan(down))]
    return _affine(image, fill, shear=angles, center=[0, 0])


_APPLY: dict[str, Callable[[Image.Image, float, list[int]], Image.Image]] = {
    "Identity": lambda image, m, fill: image,
    "ShearX": lambda image, m, fill: _shear(image, fill, m, 0.0),
    "ShearY": lambda image, m, fill: _shear(image, fill, 0.0, m),
    "TranslateX": lambda image, m, fill: _affine(image, fill, translate=[int(m), 0]),
    "TranslateY": lambda image, m, fill: _affine(image, fill, translate=[0, int(m)]),
    "Rotate": lambda image, m, fill: F.rotate(image, m, InterpolationMode.BILINEAR, fill=fill),
    "Brightness": lambda image, m, fill: F.adjust_brightness(image, 1 + m),
    "Color": lambda image, m, fill: F.adjust_saturation(image, 1 + m),
    "Contrast": lambda image, m, fill: F.adjust_contrast(image, 1 + m),
    "Sharpness": lambda image, m, fill: F.adjust_sharpness(image, 1 + m),
    "Posterize": lambda image, m, fill: F.posterize(image, int(m)),
    "Solarize": lambda image, m, fill: F.solarize(image, 255 * m),
    "AutoContrast": lambda image, m, fill: F.autocontrast(image),
    "Equalize": lambda image, m, fill: F.equalize(image),
}
