"""What a method's prototypes are: patches of the photos that it learned from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fieldmark.data.augment.geometry import shown
from fieldmark.data.loader import Loader, Photos
from fieldmark.methods.learner import Learner
from fieldmark.runtime import image
from fieldmark.train.instant import Looked

#: Photos that are looked through, at most; and how many positions of the map a patch is high and wide: one alone shows
#: less than what the network saw there.
LOOKED_THROUGH, POSITIONS = 300, 2
BATCH = 8


def prototypes(
    method: Learner, looked: Looked, learned: np.ndarray, seconds: float, workers: int | None
) -> list[dict[str, Any]]:
    """A row a patch: the number of the prototype, the class that it speaks for most (``label``) and its weight there,
    and the patch (path, and x, y, w, h in pixels of the upright photo); by class, most weight first. Without any where
    the method has no prototypes.

    learned: [n] rows of ``looked``, in the order of training; seconds: that looking through photos may take. Raises
    ImageError for a photo that cannot be read any more.
    """
    paths = [looked.paths[row] for row in learned]
    photos = Photos(paths, min_side=looked.graph.preprocess.min_side, cache_bytes=0)
    loader = Loader(photos, looked.graph.preprocess, workers=workers)

    def as_they_are() -> Iterator[tuple[Tensor, Tensor]]:
        count, begun = min(len(paths), LOOKED_THROUGH), time.monotonic()
        parts = [np.arange(at, min(at + BATCH, count)) for at in range(0, count, BATCH)]
        for part, x in zip(parts, loader.batches((part, None) for part in parts), strict=True):
            yield x, torch.from_numpy(looked.y[learned[part]])
            if time.monotonic() - begun > seconds:
                return

    found = method.patches(as_they_are)
    if found is None or not isinstance(method.head, nn.Linear):
        return []
    weight, label = method.head.weight.detach().max(0)
    answer = []
    for number, photo, (down, across) in zip(
        found.prototype.tolist(), found.photo.tolist(), found.centre.tolist(), strict=True
    ):
        if weight[number] <= 0:  # it speaks for no class
            continue
        path = paths[photo]
        width, height = image.size(image.read(path))
        left, top, right, bottom = shown((width, height), looked.graph.preprocess)
        h, w = (POSITIONS * side for side in found.side)
        x = (left + (right - left) * np.array([across - w / 2, across + w / 2])).clip(
            max(0, left), min(width, right)
        )
        y = (top + (bottom - top) * np.array([down - h / 2, down + h / 2])).clip(
            max(0, top), min(height, bottom)
        )
        (x, far), (y, low) = x.round().astype(int).tolist(), y.round().astype(int).tolist()
        if far > x and low > y:  # else it lies in the padding
            answer.append(
                {
                    "prototype": number,
                    "label": looked.classes[label[number]],
                    "weight": round(float(weight[number]), 4),
                    "path": path,
                    "x": x,
                    "y": y,
                    "w": far - x,
                    "h": low - y,
                }
            )
    order = {name: i for i, name in enumerate(looked.classes)}
    return sorted(answer, key=lambda row: (order[row["label"]], -row["weight"], row["prototype"]))
