"""Thumbnails as data URIs: few, small, upright, and with nothing of the photo's metadata."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

from fieldmark.runtime.errors import ImageError
from fieldmark.runtime.image import load

#: At most so many thumbnails, and so many bytes of them, are put into a page.
LIMIT = 400
BUDGET = 2_200_000


class Pictures:
    """The thumbnails of a page, by path and side in pixels; what is wanted first is kept first."""

    def __init__(self, wanted: Iterable[tuple[str, int]], root: Path | None = None) -> None:
        keys = list(dict.fromkeys(wanted))[:LIMIT]
        self._uris: dict[tuple[str, int], str] = {}
        with ThreadPoolExecutor() as pool:
            made = pool.map(lambda key: thumbnail(root / key[0] if root else Path(key[0]), key[1]), keys)
            room = BUDGET
            for key, data in zip(keys, made, strict=True):
                room -= len(data or b"")
                if data and room >= 0:
                    self._uris[key] = "data:image/webp;base64," + base64.b64encode(data).decode()

    def uri(self, path: str, side: int) -> str | None:
        """None where the photo could not be read or the page was full."""
        return self._uris.get((path, side))


def thumbnail(path: Path, side: int) -> bytes | None:
    """The middle square of a photo as a WebP of ``side`` pixels; None where it cannot be read."""
    try:
        photo = load(path, min_side=side)
    except ImageError:
        return None
    square = ImageOps.fit(photo, (side, side), Image.Resampling.BICUBIC)
    data = BytesIO()
    square.save(data, "WEBP", quality=70, method=2)
    return data.getvalue()
