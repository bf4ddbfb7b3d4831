"""Where a model looks in photos, in the photos' own frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from fieldmark.data.augment.geometry import shown
from fieldmark.explain.photos import opened
from fieldmark.explain.pointing import looked_at
from fieldmark.methods.base import Method
from fieldmark.methods.restore import restore
from fieldmark.runtime.bundle import Bundle
from fieldmark.runtime.errors import ImageError

#: Positions of a map, down and across; photos at a time.
SIDE, BATCH = 24, 8
Frame = tuple[float, float, float, float]


def in_middles(bundle: Bundle, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Where a model looks in the middle squares of photos: path -> float32 [SIDE, SIDE], 0 to 1 at the strongest place
    of the photo. Photos that cannot be read are left out; a model that does not show where it looks has none."""
    method = restore(bundle)
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
            heat = (seen / seen.max().clamp_min(1e-12)).numpy()
            answer[path] = middle(heat, shown(size, preprocess), size)
    return answer


def middle(heat: np.ndarray, frame: Frame, size: tuple[int, int], side: int = SIDE) -> np.ndarray:
    """A map [h, w] of what the network saw of a photo -> the map of the photo's middle square [side, side]; 0 where it
    saw nothing. frame: left, top, right, bottom of what it saw, in pixels of the photo [width, height]."""
    short = min(size)
    places = (np.arange(side) + 0.5) * short / side
    left, top, right, bottom = frame
    across = ((size[0] - short) / 2 + places - left) / (right - left)
    down = ((size[1] - short) / 2 + places - top) / (bottom - top)
    grid = np.stack(np.broadcast_arrays(across[None, :], down[:, None]), -1).astype(np.float32)
    found = nn.functional.grid_sample(
        torch.from_numpy(heat)[None, None],
        torch.from_numpy(2 * grid - 1)[None],
        padding_mode="border",
        align_corners=False,
    )[0, 0].numpy()
    inside = ((grid >= 0) & (grid <= 1)).all(-1)
    return np.where(inside, found, 0).astype(np.float32)  # type: ignore[no-any-return]
