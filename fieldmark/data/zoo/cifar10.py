"""CIFAR-10: 60,000 colour photos of 32 x 32 pixels, ten kinds of animals and vehicles; 10,000 of them to test.

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

CLASSES = 10
ARCHIVE = Remote(
    "cifar-10-binary.tar.gz",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
FOLDER = "cifar-10-batches-bin"
SPLITS = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
NAMES = "batches.meta.txt"


def write(
    root: str | Path,
    *,
    source: str = "",
    per_class: int = 0,
    progress: Callable[[int, int], None] | None = None,
    download: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the photos as PNG files with the published split into ``root`` (see `write_pictures`).

    source: a folder that holds cifar-10-binary.tar.gz, instead of fetching it (170 MB). per_class: only the
    first so many of each class in each split. ``download(done, total)`` counts bytes. Raises FieldmarkError
    where the archive cannot be had or is not the published one.
    """
    path = cifar.archive(ARCHIVE, source, download)
    wanted = [f"{FOLDER}/{name}" for name in (*SPLITS["train"], *SPLITS["test"], NAMES)]
    content = cifar.members(path, wanted)
    parts = {}
    for split, files in SPLITS.items():
        read = [cifar.records(content[f"{FOLDER}/{name}"], 1, CLASSES, name) for name in files]
        parts[split] = (np.concatenate([one[0] for one in read]), np.concatenate([one[1] for one in read]))
    names = cifar.names(content[f"{FOLDER}/{NAMES}"], CLASSES, NAMES)
    return write_pictures(root, parts, names, per_class=per_class, progress=progress)
