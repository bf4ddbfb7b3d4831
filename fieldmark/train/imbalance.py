"""What to do where some classes have many more photos than others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import numpy as np

from fieldmark import losses
from fieldmark.data.sampler import Sampler
from fieldmark.runtime.errors import UsageError

Weighting = Literal["inverse", "effective"]
Evening = Literal["balanced", "square_root"]
#: From here on (largest class to smallest) something is done.
RATIO = 5.0
#: The strength of logit adjustment: 1 makes it right for classes that are all alike frequent.
TAU = 1.0
#: Cui et al.'s beta: a class has up to 1 / (1 - beta) = 100 photos that tell something new.
BETA = 0.99
#: What `named` knows.
NAMES = ("auto", "none", "logit_adjustment", *get_args(Weighting), *get_args(Evening))


@dataclass(frozen=True)
class Imbalance:
    """How training answers to uneven classes.

    sampler: see `fieldmark.data.sampler.epoch_order`; weights: class weights of the loss; logit_adjustment:
    tau, 0: none; why: a line for the user.
    """

    sampler: Sampler = "all"
    weights: Weighting | None = None
    logit_adjustment: float = 0.0
    why: str = ""

    @property
    def evens(self) -> bool:
        """Are rare classes to count as much as others?"""
        return bool(self.logit_adjustment or self.weights or self.sampler in get_args(Evening))

    def weight(self, counts: np.ndarray) -> np.ndarray | None:
        """Class weights [C] for these counts of photos [C], or None."""
        return None if self.weights is None else class_weights(counts, self.weights)

    def log_prior(self, counts: np.ndarray) -> np.ndarray | None:
        """What is added to the logits in training [C], or None."""
        return log_prior(counts, self.logit_adjustment) if self.logit_adjustment else None


def class_weights(counts: np.ndarray, how: Weighting = "inverse", beta: float = BETA) -> np.ndarray:
    """Class weights, float32 [C], whose mean over the photos is 1.

    counts: photos of each class [C]. ``inverse``: 1 / n_c. ``effective``: (1 - beta) / (1 - beta^n_c), one over
    the effective number of photos (Cui et al., "Class-Balanced Loss Based on Effective Number of Samples",
    CVPR 2019, equation 2): near 1 / n_c where n_c is far below 1 / (1 - beta), even where it is far above. A
    class without photos weighs as one with a single photo. Raises ValueError for a beta outside (0, 1).
    """
    number = _numbers(counts)
    if how == "inverse":
        weights = 1 / number
    elif how == "effective":
        if not 0 < beta < 1:
            raise ValueError(f"beta is {beta}: it lies between 0 and 1")
        weights = (1 - beta) / -np.expm1(number * np.log(beta))
    else:
        raise ValueError(f"how is {how!r}: it is one of {', '.join(get_args(Weighting))}")
    return (weights / np.average(weights, weights=counts)).astype(np.float32)


def log_prior(counts: np.ndarray, tau: float = TAU) -> np.ndarray:
    """tau log(n_c / n), float32 [C]: what logit adjustment adds to the logits in training.

    counts: photos of each class [C]; one without photos counts as having one (Menon et al., "Long-tail
    Learning via Logit Adjustment", ICLR 2021, equation 10).
    """
    number = _numbers(counts)
    return (tau * np.log(number / number.sum())).astype(np.float32)


def choose(counts: np.ndarray) -> Imbalance:
    """What the counts of photos [C] ask for: nothing below `RATIO`, else logit adjustment.

    Not the samplers: they repeat the few photos of a rare class. Not weights: they make the
    few photos of rare classes jump the gradient, and change little once a network fits all of its photos (Byrd
    and Lipton, "What is the Effect of Importance Weighting in Deep Learning?", ICML 2019).
    """
    number = _numbers(counts)
    least, most = int(number.min()), int(number.max())
    span = f"{least} photos a class" if least == most else f"{least} to {most} photos a class"
    if most / least < RATIO:
        return Imbalance(why=f"{span}: even enough, nothing is done")
    return Imbalance(
        logit_adjustment=TAU,
        why=f"{span}, {most / least:.0f} to 1: logit adjustment, so that rare classes are not overlooked",
    )


def check(name: str) -> None:
    """Raises UsageError for a name that is not one of `NAMES`."""
    if name not in NAMES:
        raise UsageError(f"no answer to imbalance is called {name!r}; there are: {', '.join(NAMES)}")


def named(name: str, counts: np.ndarray) -> Imbalance:
    """What a user asked for by one of `NAMES`. Raises UsageError for another."""
    check(name)
    if name == "auto":
        return choose(counts)
    why = f"{name}, as asked for"
    if name == "none":
        return Imbalance(why="nothing is done, as asked for")
    if name == "logit_adjustment":
        return Imbalance(logit_adjustment=TAU, why=why)
    for how in get_args(Weighting):
        if how == name:
            return Imbalance(weights=how, why=why)
    return Imbalance(sampler=cast(Evening, name), why=why)


def with_pairs(uneven: Imbalance, loss: str, sampler: Sampler | None = None) -> Imbalance:
    """The same, with batches of several photos of each of their classes where photos are compared with others of
    their class: by a part of ``loss`` (`fieldmark.losses.needs_pairs`), or by a method whose card names a ``sampler``.

    A sampler that the user asked for stays.
    """
    wanted: Sampler = sampler or ("paired" if losses.needs_pairs(loss) else "all")
    if wanted == "all":
        return uneven
    if uneven.sampler != "all":
        return replace(uneven, why=f"{uneven.why}, though few photos then meet another of their class")
    return replace(uneven, sampler=wanted, why=f"{uneven.why}; batches hold several photos of a class")


def _numbers(counts: np.ndarray) -> np.ndarray:
    """Counts [C] as floats, at least 1. Raises ValueError for what are no counts."""
    counts = np.asarray(counts)
    if counts.ndim != 1 or not len(counts) or (counts < 0).any() or not counts.any():
        raise ValueError(f"counts {counts.shape} are not the numbers of photos [C] of some classes")
    return np.maximum(counts, 1).astype(float)
