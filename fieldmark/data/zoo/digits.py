"""scikit-learn's handwritten digits as photos: small, real, and there without a network.

1,797 digits by 43 people, 8 x 8 pixels of 17 grey levels each: the test part of "Optical Recognition of
Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998), CC BY 4.0.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fieldmark.runtime.errors import FieldmarkError, UsageError

#: Shares of train, val and test.
FRACTIONS = (0.6, 0.1, 0.3)


def write(
    root: str | Path,
    *,
    size: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the digits as PNG files of ``size`` pixels a side, dark ink on white, into ``root``.

    ``root/metadata.csv`` has file_name, label ("0" to "9") and split: 60/10/30, stratified, dealt by ``seed``.
    The 8 x 8 pixels are enlarged with bicubic interpolation. Raises UsageError for a size under 8,
    FieldmarkError without scikit-learn or where the folder cannot be written.
    """
    if size < 8:
        raise UsageError(f"digits: size {size} is less than the 8 pixels that a digit has")
    images, labels = _load()
    splits = _splits(labels, seed)
    root = Path(root)
    try:
        for name in np.unique(labels):
            (root / str(name)).mkdir(parents=True, exist_ok=True)
        with (root / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("file_name", "label", "split"))
            for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
                name = f"{label}/{i:04d}.png"
                _picture(pixels, size).save(root / name)
                table.writerow((name, label, splits[i]))
                if progress:
                    progress(i + 1, len(images))
    except OSError as error:
        raise FieldmarkError(f"digits cannot be written to {root}: {error.strerror or error}") from error
    return root


def _load() -> tuple[np.ndarray, np.ndarray]:
    """Images [1797, 8, 8] of 0 (paper) to 16 (ink), labels [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise FieldmarkError("digits needs scikit-learn: pip install 'fieldmark[train]'") from None
    bunch = load_digits()
    return bunch.images, bunch.target


def _picture(pixels: np.ndarray, size: int) -> Image.Image:
    ink = Image.fromarray(np.uint8(np.round(255 - pixels * (255 / 16))))
    return ink.resize((size, size), Image.Resampling.BICUBIC)


def _splits(labels: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    splits = np.full(len(labels), "test", dtype=object)
    for name in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == name))
        train, val = (round(share * len(rows)) for share in FRACTIONS[:2])
        splits[rows[:train]] = "train"
        splits[rows[train : train + val]] = "val"
    return splits
