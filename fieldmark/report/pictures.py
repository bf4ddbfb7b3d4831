"""Thumbnails as data URIs: few, small, upright, and with nothing of the photo's metadata."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fieldmark.runtime import image
from fieldmark.runtime.errors import ImageError

#: Left, top, right, bottom in pixels of the upright photo.
Box = tuple[int, int, int, int]
#: Path, side in pixels, and what is cut out of the photo (None: all of it).
Wanted = tuple[str, int, Box | None]
#: How dark a photo is where a model did not look.
DIMMED = 0.62
#: At most so many thumbnails, and so many bytes of them, are put into a page.
LIMIT = 400
BUDGET = 2_200_000


class Pictures:
    """The thumbnails of a page, by path, side in pixels and what is cut out of the photo; what is wanted first is
    kept first."""

    def __init__(self, wanted: Iterable[Wanted], root: Path | None = None) -> None:
        keys = list(dict.fromkeys(wanted))[:LIMIT]
        self._uris: dict[Wanted, str] = {}
        with ThreadPoolExecutor() as pool:
            made = pool.map(lambda key: thumbnail(root / key[0] if root else Path(key[0]), *key[1:]), keys)
            room = BUDGET
            for key, data in zip(keys, made, strict=True):
                room -= len(data or b"")
                if data and room >= 0:
                    self._uris[key] = "data:image/webp;base64," + base64.b64encode(data).decode()

    def uri(self, path: str, side: int, box: Box | None = None) -> str | None:
        """None where the photo could not be read or the page was full."""
        return self._uris.get((path, side, box))


def thumbnail(path: Path, side: int, box: Box | None = None) -> bytes | None:
    """The middle square of a photo, or of a box in it, as a WebP of ``side`` pixels; None where it cannot be read."""
    try:
        data = image.read(path)
        photo = image.decode(data, side if box is None else _enough(image.size(data), side, box))
        if box:
            scale = photo.width / image.size(data)[0]
            photo = photo.crop(tuple(round(place * scale) for place in box))  # type: ignore[arg-type]
    except ImageError:
        return None
    square = ImageOps.fit(photo, (side, side), Image.Resampling.BICUBIC)
    file = BytesIO()
    square.save(file, "WEBP", quality=70, method=2)
    return file.getvalue()


def mask(heat: np.ndarray) -> str:
    """What lies over a photo so that only the places a model looked at are light: a data URI. heat: [h, w], 0 to 1."""
    alpha = Image.fromarray((255 * DIMMED * (1 - heat.clip(0, 1))).astype(np.uint8))
    file = BytesIO()
    Image.merge("LA", (Image.new("L", alpha.size), alpha)).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _enough(size: tuple[int, int], side: int, box: Box) -> int:
    """Pixels that the shorter side of a photo must keep, so that a box in it has as many as are shown."""
    return -(-side * min(size) // max(1, min(box[2] - box[0], box[3] - box[1])))
