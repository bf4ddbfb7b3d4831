"""Does a method look where the mark is? The pointing game, on photos whose mark is known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fieldmark.data.boxes import boxes, shares
from fieldmark.methods.base import Method
from fieldmark.methods.restore import restore
from fieldmark.nn.crops import covered
from fieldmark.runtime import image
from fieldmark.runtime.bundle import Bundle
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError

BATCH = 16


class Pointing(NamedTuple):
    """hit: share of photos whose strongest place lies within the box; inside: mean share of all attention that does;
    area: mean share of the photo that the box takes, which is what looking anywhere would give; n: photos."""

    hit: float
    inside: float
    area: float
    n: int


def pointing(bundle: Bundle, catalog: Catalog, name: str = "mark") -> Pointing:
    """Judge a model by the boxes NAME_x … of a catalog (Zhang et al., "Top-down Neural Attention by Excitation
    Backprop", IJCV 2018, section 5.1, without a margin round the box).

    Raises FieldmarkError where the catalog has no such boxes, and for a model that shows no attention.
    """
    found = boxes(catalog, name)
    rows = np.flatnonzero(np.isfinite(found).all(1)) if found is not None else np.empty(0, int)
    if found is None or not len(rows):
        raise FieldmarkError(
            f"the photos have no boxes of a {name}: columns {name}_x, {name}_y, {name}_w, {name}_h"
        )
    method = restore(bundle)
    if not isinstance(method, Method):
        raise FieldmarkError(f"{bundle.path}: {bundle.section.method} does not show where it looks")
    preprocess = bundle.section.preprocess
    hit, inside, area = [], [], []
    for at in range(0, len(rows), BATCH):
        part = rows[at : at + BATCH]
        photos = [image.load(catalog.paths[row]) for row in part]
        pixels = torch.from_numpy(np.stack([preprocess(photo) for photo in photos]))
        within = shares(found[part], np.array([photo.size for photo in photos]))
        seen = looked_at(method, pixels)
        marks = covered(torch.from_numpy(within), *seen.shape[1:])
        hit += (seen * (marks > 0)).flatten(1).amax(1).eq(seen.flatten(1).amax(1)).tolist()
        inside += ((seen * marks).sum((1, 2)) / seen.sum((1, 2)).clamp_min(1e-12)).tolist()
        area += marks.mean((1, 2)).tolist()
    return Pointing(float(np.mean(hit)), float(np.mean(inside)), float(np.mean(area)), len(rows))


def looked_at(method: Method, images: Tensor, side: int = 64) -> Tensor:
    """Attention for images [B, 3, S, S], smoothed to [B, side, side]."""
    seen = method.attention(images)[:, None].float()
    return nn.functional.interpolate(seen, size=(side, side), mode="bilinear", align_corners=False)[:, 0]
