"""One augmented view of a photo. All that is drawn comes from the numpy generator handed in.

So a view is a function of (seed, photo, epoch), on any number of threads: torch's global generator, which
torchvision's transform classes draw from, is never touched.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fieldmark.data.augment import color
from fieldmark.data.augment.geometry import TRIES, crop_box
from fieldmark.data.augment.policy import policy
from fieldmark.data.augment.settings import Augment
from fieldmark.runtime.preprocess import Preprocess

#: The area (share) and the ratio of the rectangle that is erased.
ERASED, ERASED_RATIO = (0.02, 0.33), (0.3, 10 / 3)
#: Blur in pixels (standard deviation) where the side has 224.
SIGMA = (0.1, 2.0)
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Rotation knows no lanczos.
_TURNS = {"nearest": InterpolationMode.NEAREST, "bilinear": InterpolationMode.BILINEAR}


def view_rng(seed: int, content: str, epoch: int) -> np.random.Generator:
    """The generator of a photo's view: a pure function of (seed, the photo's content hash, epoch)."""
    name = hashlib.blake2b(f"view\0{seed}\0{content}\0{epoch}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(name, "big")))


def augment(
    photo: Image.Image,
    preprocess: Preprocess,
    rng: np.random.Generator,
    settings: Augment,
    size: int | None = None,
) -> np.ndarray:
    """A view of an upright RGB photo: uint8 [S, S, 3] in the colour space of ``preprocess``, S = ``size`` or its.

    With `Augment.none` it is ``preprocess.pixels(photo)``, bit for bit. Mixup and cutmix concern batches: see
    `mix`.
    """
    whole = resized(preprocess, size or preprocess.size)
    fill = _grey(preprocess)
    image = _cropped(photo, whole, rng, settings, fill) if settings.crops else whole.geometry(photo)
    if settings.flip and rng.random() < 0.5:
        image = F.horizontal_flip(image)
    if settings.rotate:
        angle = rng.uniform(-settings.rotate, settings.rotate)
        how = _TURNS.get(preprocess.interpolation, InterpolationMode.BICUBIC)
        image = F.rotate(image, angle, how, fill=list(fill))
    if settings.policy:
        image = policy(image, settings.policy, rng, fill)
    if settings.color:
        image = _colored(image, settings.color, rng)
    if settings.blur and rng.random() < settings.blur:
        # torchvision's blur would go through a tensor, and start torch's threads in every one of ours.
        radius = rng.uniform(*SIGMA) * image.width / 224
        image = image.filter(ImageFilter.GaussianBlur(radius))
    pixels = _square(whole).pixels(image)
    if settings.erase and rng.random() < settings.erase:
        pixels = _erased(pixels, preprocess, rng)
    return pixels


@lru_cache(maxsize=64)
def resized(preprocess: Preprocess, size: int) -> Preprocess:
    """The same specification at another size. Raises ValidationError for a size it cannot have."""
    return Preprocess(**{**preprocess.model_dump(), "size": size})


@lru_cache(maxsize=64)
def _square(preprocess: Preprocess) -> Preprocess:
    """What is left to do with a picture that has its size already: the colour space."""
    return preprocess.model_copy(update={"resize": "stretch"})


def _grey(preprocess: Preprocess) -> tuple[int, int, int]:
    """The RGB colour that `Preprocess` pads with."""
    if preprocess.color_space != "rgb":
        return (128, 128, 128)
    red, green, blue = (round(255 * m) for m in preprocess.mean)
    return (red, green, blue)


def _cropped(
    photo: Image.Image,
    preprocess: Preprocess,
    rng: np.random.Generator,
    settings: Augment,
    fill: tuple[int, int, int],
) -> Image.Image:
    """A random box of the photo, resized once."""
    if preprocess.resize == "pad":
        side = max(photo.size)
        canvas = Image.new("RGB", (side, side), fill)
        canvas.paste(photo, ((side - photo.width) // 2, (side - photo.height) // 2))
        photo = canvas
    box = crop_box(photo.size, rng, settings, stretch=preprocess.resize == "stretch")
    return photo.resize((preprocess.size, preprocess.size), _FILTERS[preprocess.interpolation], box=box)


def _colored(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation and hue changed, in a random order."""
    order = rng.permutation(4)
    light, contrast, saturation = rng.uniform(1 - 0.8 * strength, 1 + 0.8 * strength, 3)
    hue = rng.uniform(-0.1 * strength, 0.1 * strength)
    matrix, mean = np.eye(4), color.mean(image)
    for step in order:
        if step == 0:
            change = color.brightness(light)
        elif step == 1:
            change = color.contrast(contrast, float(color.GREY @ (matrix @ mean)[:3]))
        elif step == 2:
            change = color.saturation(saturation)
        else:
            change = color.hue(hue)
        matrix = change @ matrix
    return color.recolored(image, matrix)


def _erased(pixels: np.ndarray, preprocess: Preprocess, rng: np.random.Generator) -> np.ndarray:
    """A copy with a rectangle of the mean colour, which becomes 0 when normalised (but for rounding)."""
    side = len(pixels)
    for _ in range(TRIES):
        area = side * side * rng.uniform(*ERASED)
        ratio = math.exp(rng.uniform(math.log(ERASED_RATIO[0]), math.log(ERASED_RATIO[1])))
        down, across = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < down < side and 0 < across < side:
            top, left = rng.integers(side - down + 1), rng.integers(side - across + 1)
            pixels = pixels.copy()
            pixels[top : top + down, left : left + across] = [
                min(max(round(255 * m), 0), 255) for m in preprocess.mean
            ]
            break
    return pixels
