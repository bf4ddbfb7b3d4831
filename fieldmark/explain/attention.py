"""Where a model looks in photos, in the photos' own frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fieldmark.data.augment.geometry import shown
from fieldmark.explain.photos import opened
from fieldmark.explain.pointing import looked_at
from fieldmark.methods.base import Method
from fieldmark.methods.restore import restore
from fieldmark.nn.parts import paste
from fieldmark.runtime.bundle import Bundle
from fieldmark.runtime.errors import ImageError

#: Positions of a map, down and across; photos at a time.
SIDE, BATCH = 24, 4
Frame = tuple[float, float, float, float]


def in_middles(bundle: Bundle, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Where a model looks in the middle squares of photos: path -> float32 [SIDE, SIDE], 0 to 1 at the strongest place
    of the photo. Left out are photos that cannot be read, and those of which no place speaks for the answer; a model
    that does not show where it looks has none."""
    method = restore(bundle).requires_grad_(False)
    if not isinstance(method, Method):
        return {}
    preprocess, answer = bundle.section.preprocess, {}
    for at in range(0, len(paths), BATCH):
        photos = {}
        for path in paths[at : at + BATCH]:
            try:
                photos[path] = opened(path, preprocess)
            except ImageError:
                continue
        if not photos:
            continue
        pixels = torch.from_numpy(np.stack([preprocess(photo) for photo, _ in photos.values()]))
        for (path, (_, size)), seen in zip(photos.items(), looked_at(method, pixels), strict=True):
            if 0 < (most := float(seen.max())) < math.inf:
                answer[path] = middle(seen / most, shown(size, preprocess), size)
    return answer


def middle(heat: Tensor, frame: Frame, size: tuple[int, int], side: int = SIDE) -> np.ndarray:
    """A map [h, w] of what the network saw of a photo -> the map of the photo's middle square [side, side]; 0 where it
    saw nothing. frame: left, top, right, bottom of what it saw, in pixels of the photo [width, height]."""
    short = min(size)
    start = np.tile([(size[0] - short) / 2, (size[1] - short) / 2], 2)
    box = torch.tensor((np.array(frame) - start) / short, dtype=torch.float32)
    return paste(heat[None], box[None], side)[0].numpy()  # type: ignore[no-any-return]
