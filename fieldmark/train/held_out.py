"""Which photos are kept out of the weights."""

from __future__ import annotations

import numpy as np

from fieldmark.data.split import folds
from fieldmark.train.instant import Looked

#: One photo of so many is held out where the catalog names none.
HELD_OUT = 10


def hold_out(looked: Looked, val: np.ndarray) -> np.ndarray:
    """Which photos judge, [N] bool: the catalog's own (``val``, [N] bool) if they show every class, else a tenth
    of all. Every class keeps a photo to learn from."""
    classes = len(looked.classes)
    whole = len(np.unique(looked.y[val])) == classes
    held = val.copy() if whole else folds(looked.y, looked.groups, HELD_OUT) == 0
    lacking = np.bincount(looked.y[~held], minlength=classes) == 0
    held[lacking[looked.y]] = False
    return held
