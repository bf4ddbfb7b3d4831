"""Does a method look where the mark is? The pointing game, on photos whose mark is known."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fieldmark.data.boxes import boxes
from fieldmark.explain.photos import in_view, opened
from fieldmark.methods.base import Method
from fieldmark.methods.restore import restore
from fieldmark.nn.crops import covered
from fieldmark.runtime.bundle import Bundle
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError, ImageError

BATCH = 16


class Pointing(NamedTuple):
    """hit: share of photos whose strongest place lies within the box; inside: mean share of all attention that does;
    area: mean share of what the network sees that the box takes, which is what looking anywhere gives; n: photos."""

    hit: float
    inside: float
    area: float
    n: int


def pointing(bundle: Bundle, catalog: Catalog, name: str = "mark") -> Pointing:
    """Judge a model by the boxes NAME_x … of a catalog (Zhang et al., "Top-down Neural Attention by Excitation
    Backprop", IJCV 2018, section 5.1, without a margin round the box).

    Photos that cannot be read are left out. A mark that is cropped away, which the network does not see, is missed.
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
    paths = catalog.paths
    hit, inside, area = [], [], []
    for at in range(0, len(rows), BATCH):
        pixels, within = [], []
        for row in rows[at : at + BATCH]:
            with contextlib.suppress(ImageError):
                photo, size = opened(paths[row], preprocess)
                pixels.append(preprocess(photo))
                within.append(in_view(found[row], size, preprocess))
        if not pixels:
            continue
        seen = looked_at(method, torch.from_numpy(np.stack(pixels)))
        marks = covered(torch.from_numpy(np.stack(within)), *seen.shape[1:])
        hit += hits(seen, marks).tolist()
        inside += ((seen * marks).sum((1, 2)) / seen.sum((1, 2)).clamp_min(1e-12)).tolist()
        area += marks.mean((1, 2)).tolist()
    if not hit:
        raise FieldmarkError(f"none of the {len(rows)} photos with a {name} can be read")
    return Pointing(float(np.mean(hit)), float(np.mean(inside)), float(np.mean(area)), len(hit))


def hits(seen: Tensor, marks: Tensor) -> Tensor:
    """Does the strongest place of a map lie in the box, by more than half of its cell? Of several that are equally
    strong (enlarging makes such) all must; a map without any place that is stronger than others looks nowhere.

    seen: [B, h, w]; marks: the share of each cell that the box covers. Gives bool [B]."""
    flat, within = seen.flatten(1), marks.flatten(1) > 0.5
    peak = flat.amax(1, keepdim=True)
    somewhere = (peak > 0) & (flat.amin(1, keepdim=True) < peak)
    return somewhere[:, 0] & (within | (flat < peak)).all(1)


def looked_at(method: Method, images: Tensor, side: int = 64) -> Tensor:
    """Attention for images [B, 3, S, S], smoothed to [B, side, side]."""
    seen = method.attention(images)[:, None].float()
    return nn.functional.interpolate(seen, size=(side, side), mode="bilinear", align_corners=False)[:, 0]
