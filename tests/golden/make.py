"""Write preprocess.npz: two small rendered photos, and what every specification makes of them.

``python tests/golden/make.py`` after a change that is meant to change pixels; the tests compare with it, so that
a model keeps seeing what it was trained on, whatever version of pillow comes.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from fieldmark.runtime.preprocess import ColorSpace, Interpolation, Preprocess, Resize

FILE = Path(__file__).with_name("preprocess.npz")
SIZE = 16
SPECIFICATIONS = {
    "-".join(choice): Preprocess(
        size=SIZE, resize=choice[0], color_space=choice[1], interpolation=choice[2], crop_pct=0.875
    )
    for choice in product(get_args(Resize), get_args(ColorSpace), get_args(Interpolation))
}


def render() -> dict[str, np.ndarray]:
    """A wide photo that is reduced and a tall one that is enlarged: ramps, edges and saturated colours."""
    photos = {}
    for name, (height, width) in {"wide": (41, 70), "tall": (15, 9)}.items():
        y, x = np.mgrid[0:height, 0:width]
        red = 255 * x / (width - 1)
        green = 127 + 127 * np.sin(x * 0.7 + y * 0.4)
        blue = np.where((x // 4 + y // 3) % 2, 230, 20)
        photo = np.stack([red, green, blue], -1).round().astype(np.uint8)
        photo[height // 3 : height // 2, width // 4 : width // 2] = (200, 30, 40)
        photo[: height // 5] = 128
        photos[name] = photo
    return photos


def main() -> None:
    photos = render()
    arrays = {f"photo.{name}": photo for name, photo in photos.items()}
    for (name, photo), (title, spec) in product(photos.items(), SPECIFICATIONS.items()):
        arrays[f"{name}.{title}"] = spec.pixels(Image.fromarray(photo))
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE.name}: {len(arrays)} arrays, {FILE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
