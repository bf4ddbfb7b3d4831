"""CIFAR-100: 60,000 colour photos of 32 x 32 pixels, 100 classes in 20 superclasses; 10,000 of them to test.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, 2009. The authors
name no licence.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fieldmark.data.zoo import cifar
from fieldmark.data.zoo.download import Remote
from fieldmark.data.zoo.pictures import write_pictures
from fieldmark.runtime.errors import FieldmarkError

CLASSES, SUPERCLASSES = 100, 20
ARCHIVE = Remote(
    "cifar-100-binary.tar.gz",
    ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
    168_513_733,
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)
FOLDER = "cifar-100-binary"
SPLITS = {"train": "train.bin", "test": "test.bin"}
NAMES, SUPERNAMES = "fine_label_names.txt", "coarse_label_names.txt"


def write(
    root: str | Path,
    *,
    source: str = "",
    per_class: int = 0,
    progress: Callable[[int, int], None] | None = None,
    download: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the photos as PNG files with the published split into ``root`` (see `write_pictures`).

    metadata.csv has one more column, ``superclass``. source: a folder that holds cifar-100-binary.tar.gz,
    instead of fetching it (169 MB). per_class: only the first so many of each class in each split.
    ``download(done, total)`` counts bytes. Raises FieldmarkError where the archive cannot be had or is not
    the published one.
    """
    path = cifar.archive(ARCHIVE, source, download)
    content = cifar.members(path, [f"{FOLDER}/{name}" for name in (*SPLITS.values(), NAMES, SUPERNAMES)])
    parts = {
        split: cifar.records(content[f"{FOLDER}/{name}"], 2, CLASSES, name) for split, name in SPLITS.items()
    }
    names = cifar.names(content[f"{FOLDER}/{NAMES}"], CLASSES, NAMES)
    supernames = cifar.names(content[f"{FOLDER}/{SUPERNAMES}"], SUPERCLASSES, SUPERNAMES)
    of = _superclasses(content[f"{FOLDER}/{SPLITS['train']}"])
    ranks = {"superclass": [supernames[number] for number in of.tolist()]}
    return write_pictures(root, parts, names, per_class=per_class, ranks=ranks, progress=progress)


def _superclasses(content: bytes) -> np.ndarray:
    """The superclass of each class [100], from records whose first bytes are superclass and class."""
    table = np.frombuffer(content, np.uint8).reshape(-1, 2 + cifar.PIXELS)
    of = np.full(CLASSES, -1)
    of[table[:, 1]] = table[:, 0]
    if (of < 0).any() or (of >= SUPERCLASSES).any() or (of[table[:, 1]] != table[:, 0]).any():
        raise FieldmarkError(
            f"{SPLITS['train']} does not put every class into one of {SUPERCLASSES} superclasses"
        )
    return of
