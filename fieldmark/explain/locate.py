"""Where things are: boxes and masks, also from a model that was taught nothing but classes.

A method that was taught boxes says where things are and what each is (`Method.boxes`). Of all others the map of what
the method looks at (`Method.attention`) is cut at a share of its largest value; each connected part of what is left is
a box (Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, section 3.2, which keeps the
largest part only).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fieldmark.data.augment.geometry import Box as Frame
from fieldmark.data.augment.geometry import shown
from fieldmark.explain.photos import opened
from fieldmark.methods.base import Found, Method
from fieldmark.methods.restore import restore
from fieldmark.nn.components import components, sizes
from fieldmark.nn.crops import of_peak
from fieldmark.runtime.bundle import Bundle
from fieldmark.runtime.errors import FieldmarkError, ImageError
from fieldmark.runtime.preprocess import Preprocess

#: Cells a side in which a map is cut.
SIDE = 64
#: Share of a map's largest value above which it marks the thing (Zhou et al. have 0.2), and of its cells that the
#: smallest part must have.
THRESHOLD, SMALLEST = 0.2, 0.005


@dataclass(frozen=True)
class Thing:
    """box: left, top, right, bottom in pixels of the upright photo; score: from 0 to 1, a detector's own, else how sure
    the model is of the photo's class, times how strong this part of the map is; label: what it is, else what the photo
    shows."""

    box: tuple[float, float, float, float]
    score: float
    label: str


@dataclass(frozen=True)
class Located:
    """label, score: what the photo shows, and how sure that is; things: the strongest first; mask: bool [H, W] of the
    photo, all things together; error: why it was not read."""

    path: str
    label: str | None = None
    score: float | None = None
    things: tuple[Thing, ...] = ()
    mask: np.ndarray | None = None
    error: str = ""


class Locator:
    """Finds things with one model. most: boxes a photo; threshold: a detector's least score, else share of the map's
    largest value.

    Raises FieldmarkError for a model that does not show where it looks.
    """

    def __init__(self, bundle: Bundle, most: int = 5, threshold: float = THRESHOLD):
        method = restore(bundle)
        if not isinstance(method, Method):
            raise FieldmarkError(f"{bundle.path}: {bundle.section.method} does not show where it looks")
        self.method, self.bundle, self.most, self.threshold = method, bundle, most, threshold
        self.preprocess: Preprocess = bundle.section.preprocess

    def __call__(self, photos: Sequence[str]) -> Iterator[Located]:
        """One answer a photo, in order; a photo that cannot be read says why."""
        for path in photos:
            try:
                yield self.one(path)
            except ImageError as error:
                yield Located(path, error=str(error))

    def one(self, path: str) -> Located:
        """Raises ImageError for a photo that cannot be read."""
        photo, size = opened(path, self.preprocess)
        pixels = torch.from_numpy(self.preprocess(photo))[None]
        with torch.inference_mode():
            logits = self.method(pixels)[0] / self.bundle.section.decision.temperature
        p = torch.softmax(logits, 0)
        best = int(p.argmax())
        label, frame = self.bundle.classes[best], shown(size, self.preprocess)
        detected = self.method.boxes(pixels, self.threshold)
        if detected is not None:
            things = self._known(detected[0], frame, size)
            return Located(path, label, float(p[best]), things, _inside(things, size))
        seen = at_size(self.method.attention(pixels), SIDE)
        parts, marked = found(seen, self.threshold, self.most)
        things = tuple(
            Thing(_in_photo(box, frame, size), float(p[best]) * strength, label) for box, strength in parts[0]
        )
        return Located(path, label, float(p[best]), things, _mask(marked[0], frame, size))

    def _known(self, detected: Found, frame: Frame, size: tuple[int, int]) -> tuple[Thing, ...]:
        """The surest things of the model's classes; one that was removed from it is not told."""
        names = self.method.task.names or tuple(self.bundle.classes)
        things = (
            Thing(_in_photo(box, frame, size), score, names[number])
            for box, score, number in zip(
                detected.boxes.numpy(), detected.scores.tolist(), detected.classes.tolist(), strict=True
            )
            if names[number] in self.bundle.classes
        )
        return tuple(islice(things, self.most))


def at_size(maps: Tensor, side: int) -> Tensor:
    """[B, h, w] -> [B, side, side], bilinear."""
    return nn.functional.interpolate(
        maps[:, None].float(), size=(side, side), mode="bilinear", align_corners=False
    )[:, 0]


def found(maps: Tensor, threshold: float, most: int) -> tuple[list[list[tuple[np.ndarray, float]]], Tensor]:
    """The parts of each map [B, h, w] that lie above a share of its largest value: boxes [4] as shares of the sides
    with their strengths (largest value of the part over that of the map), the ``most`` strongest first; and what these
    cover, bool [B, h, w]. A map without anything marks nothing."""
    marked = maps > of_peak(maps, threshold)[:, None, None]
    numbers = components(marked)
    marked = marked & (sizes(numbers) >= SMALLEST * maps[0].numel())
    answer = []
    for values, labels, inside in zip(maps, numbers, marked, strict=True):
        parts = []
        for number in torch.unique(labels[inside]).tolist():
            rows, columns = torch.nonzero((labels == number) & inside, as_tuple=True)
            height, width = labels.shape
            box = np.array(
                [
                    columns.min() / width,
                    rows.min() / height,
                    (columns.max() + 1) / width,
                    (rows.max() + 1) / height,
                ]
            )
            parts.append((box, float(values[rows, columns].max() / values.max()), number))
        kept = sorted(parts, key=lambda part: -part[1])[:most]
        answer.append([(box, strength) for box, strength, _ in kept])
        inside &= torch.isin(labels, labels.new_tensor([number for *_, number in kept]))
    return answer, marked


def _in_photo(box: np.ndarray, frame: Frame, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Shares of what the network saw -> pixels of the photo."""
    left, top, right, bottom = frame
    x = np.clip(left + box[[0, 2]] * (right - left), 0, size[0])
    y = np.clip(top + box[[1, 3]] * (bottom - top), 0, size[1])
    return float(x[0]), float(y[0]), float(x[1]), float(y[1])


def _inside(things: Sequence[Thing], size: tuple[int, int]) -> np.ndarray:
    """What boxes cover, as a mask [H, W] of a photo of this size (width, height)."""
    mask = np.zeros(size[::-1], bool)
    for thing in things:
        left, top, right, bottom = (round(side) for side in thing.box)
        mask[top:bottom, left:right] = True
    return mask


def _mask(marked: Tensor, frame: Frame, size: tuple[int, int]) -> np.ndarray:
    """What is marked of what the network saw, as a mask of the photo."""
    left, top, right, bottom = frame
    side = marked.shape[0]
    columns = np.floor((np.arange(size[0]) + 0.5 - left) / (right - left) * side).astype(int)
    rows = np.floor((np.arange(size[1]) + 0.5 - top) / (bottom - top) * side).astype(int)
    seen = ((rows >= 0) & (rows < side))[:, None] & ((columns >= 0) & (columns < side))[None]
    values: Any = marked.numpy()
    return values[rows.clip(0, side - 1)][:, columns.clip(0, side - 1)] & seen
