"""Photos, and where a method looks in them: a row of each, as one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from fieldmark.explain.photos import in_view
from fieldmark.explain.pointing import looked_at
from fieldmark.methods.base import Method
from fieldmark.runtime.preprocess import Preprocess

SIDE, GAP = 160, 4
#: The mark's frame, and the colour that attention has.
FRAME, WARM = (255, 255, 255), np.array([255, 60, 0], np.float32)


def attention_picture(
    method: Method, preprocess: Preprocess, photos: Sequence[Image.Image], boxes: np.ndarray | None = None
) -> Image.Image:
    """Above what the network sees of the photos, below it dimmed but for where the method looks.

    boxes: [N, 4] of their marks, as shares of the photos' sides, which are framed.
    """
    tile_of = preprocess.model_copy(update={"size": SIDE, "interpolation": "lanczos"})
    pixels = torch.from_numpy(np.stack([preprocess(photo) for photo in photos]))
    seen = looked_at(method, pixels, SIDE)
    sheet = Image.new("RGB", (len(photos) * (SIDE + GAP) - GAP, 2 * SIDE + GAP), "white")
    for number, photo in enumerate(photos):
        small = tile_of.geometry(photo.convert("RGB"))
        heat = (seen[number] / seen[number].max().clamp_min(1e-12)).numpy()[..., None]
        lit = np.asarray(small, np.float32) * (0.35 + 0.65 * heat) * (1 - 0.35 * heat) + 0.35 * heat * WARM
        warm = Image.fromarray(lit.clip(0, 255).astype(np.uint8))
        if boxes is not None and np.isfinite(boxes[number]).all():
            box = in_view(boxes[number] * np.tile(photo.size, 2), photo.size, preprocess)
            if (box[2:] > box[:2]).all():
                ImageDraw.Draw(warm).rectangle(tuple((box * SIDE).round().tolist()), outline=FRAME)
        for row, tile in enumerate((small, warm)):
            sheet.paste(tile, (number * (SIDE + GAP), row * (SIDE + GAP)))
    return sheet
