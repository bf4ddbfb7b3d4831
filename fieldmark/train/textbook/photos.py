"""Photos for a network from scratch: in which size they are read, and their pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fieldmark.data.split import folds
from fieldmark.methods.cnn import LEAST
from fieldmark.methods.descriptor import DescriptorGraph
from fieldmark.nn.weights import Source
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.preprocess import Preprocess
from fieldmark.runtime.results import Skipped
from fieldmark.train import processes
from fieldmark.train.instant import Looked
from fieldmark.train.settings import Settings
from fieldmark.train.textbook.pixels import longest_side, read_pixels
from fieldmark.train.textbook.recipe import BACKBONE, METHOD

#: Photos up to the first side are read as they are; those up to the second at the first, larger ones at the second.
SMALL, LARGE = 32, 64
#: Pixels from -1 to 1.
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


class Seen(NamedTuple):
    """looked: all photos that can be read (without descriptors); images: their pixels, uint8 [N, S, S, 3]; val:
    [N] bool, the catalog's own; skipped: those that cannot be read."""

    looked: Looked
    images: np.ndarray
    val: np.ndarray
    skipped: list[Skipped]


def look(
    catalog: Catalog, groups: np.ndarray, settings: Settings, folder: Path, progress: Callable[[int], None]
) -> Seen:
    """Read all photos. groups: [N]; folder: for the pixels, should memory be short; progress: how many are done.

    Raises FieldmarkError where fewer than two classes are left.
    """
    paths = catalog.paths
    size = settings.scales[0] if settings.scales else usual_size(longest_side(paths))
    given = {name: value for name, value in settings.preprocess.items() if value is not None}
    preprocess = Preprocess(**{"size": size, "mean": MEAN, "std": STD, "interpolation": "bilinear", **given})
    pixels = read_pixels(
        paths, preprocess, folder / f"pixels-{processes.rank()}.u8", settings.workers, progress
    )
    images, content = pixels.images, pixels.content
    if pixels.errors:
        good = np.array([row not in pixels.errors for row in range(len(paths))], bool)
        catalog, groups, images = catalog.select(good), groups[good], images[good]
        content = [name for name, keep in zip(content, good, strict=True) if keep]
    labels = np.asarray(catalog.labels, object)
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise FieldmarkError(f"only {len(classes)} class has readable photos to train on: two are needed")
    y = np.searchsorted(np.asarray(classes, object), labels)
    k = min(settings.folds, len(np.unique(groups)))
    if k < 2:
        raise FieldmarkError("all photos belong to one group: nothing is left to judge by")
    graph = DescriptorGraph(
        path=Path(),
        weights=Path(),
        key=f"{METHOD} {preprocess.model_dump_json()}",
        native=size,
        widths=(),
        scales=(size,),
        preprocess=preprocess,
        source=Source(BACKBONE, None, "", {}),
        method=METHOD,
        parity=0.0,
    )
    fold, z = folds(y, groups, k, settings.seed), np.empty((len(y), 0), np.float16)
    return Seen(
        looked=Looked(graph, classes, catalog.paths, content, y, groups, fold, z, []),
        images=images,
        val=np.array([split == "val" for split in catalog.splits]),
        skipped=[Skipped(paths[row], why) for row, why in pixels.errors.items()],
    )


def usual_size(longest: int) -> int:
    """Side in pixels at which photos with this longest side are looked at."""
    if longest <= SMALL:
        return max(LEAST, longest)
    return SMALL if longest <= LARGE else LARGE
