"""How the textbook network is trained on known sets: layers and learning that were measured there (`--recipe`)."""

from __future__ import annotations

from typing import NamedTuple

from fieldmark.methods.cnn import Options, Stage


class Recipe(NamedTuple):
    """How it is trained: AdamW, the rate in one cycle (a fifth of it rising). shift: a share of the side."""

    options: Options
    epochs: int
    learning_rate: float = 3e-3
    weight_decay: float = 0.01  # not of biases and norms
    batch: int = 128
    shift: float = 0.0
    flip: bool = False


_TWO = Options(stages=(Stage(channels=32), Stage(channels=64)))
#: By set; benchmarks/cnn.py measures them.
RECIPE = {
    "digits": Recipe(Options(), epochs=20, batch=64, shift=0.125),
    "mnist": Recipe(_TWO, epochs=5, shift=0.08),
    "fashion-mnist": Recipe(_TWO, epochs=5, flip=True),
}
