"""Held-out photos judge the weights of a run: the curve, and which weights are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fieldmark.runtime.decision import fit_temperature, softmax
from fieldmark.train.loop.averages import State, copied, soup

#: So much smaller a share of right photos counts even where chance explains it, and a rise of the mean negative
#: log-likelihood (nats) counts only from here on.
FEWER, UNLIKELIER = 0.01, 0.1
#: Snapshots of the average that the soup is made of.
SOUP = 3


class Score(NamedTuple):
    """Of the held-out photos: share that is right, and the mean negative log-likelihood in nats, at the
    temperature that makes it least; of each photo what it counts where scores are compared: 1 if it is right, and its
    negative log-likelihood, times its weight."""

    accuracy: float
    nll: float
    right: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, even: bool = False) -> Score:
        """logits: [N, C], labels: [N]. even: do classes weigh the same, however many photos they have? Logits that are
        no numbers are all wrong."""
        values, true = logits.numpy(), labels.numpy()
        if not np.isfinite(values).all():
            return cls(0.0, float("inf"))
        p = softmax(values, fit_temperature(values, true))[np.arange(len(true)), true]
        right, losses = (values.argmax(1) == true).astype(float), -np.log(np.maximum(p, 1e-12))
        counts = np.bincount(true)
        weight = len(true) / ((counts > 0).sum() * counts[true]) if even else np.ones(len(true))
        counted = (tuple((weight * one).tolist()) for one in (right, losses))
        return cls(float(right.mean()), float(losses.mean()), *counted)

    @property
    def value(self) -> tuple[float, float]:
        """The larger, the better: what is right and, where that is equal, how likely the classes are."""
        if not self.right:
            return self.accuracy, -self.nll
        return float(np.mean(self.right)), -float(np.mean(self.losses))

    @classmethod
    def read(cls, told: Sequence[Any]) -> Score:
        """What JSON made of one."""
        return cls(*told[:2], *(tuple(one) for one in told[2:]))

    def beats(self, other: Score) -> bool:
        return self.value > other.value

    def worse(self, other: Score) -> bool:
        """Than another of the same photos: fewer are right, by more than one standard error of the difference or more
        than `FEWER`, or no more are right and their classes less likely, by more than that error and `UNLIKELIER`.

        Where nearly all are right by either, a photo or two of hundreds say nothing.
        """
        if not self.right or len(self.right) != len(other.right):
            return self.accuracy < other.accuracy
        gain = np.asarray(self.right, float) - np.asarray(other.right, float)
        rise = np.asarray(self.losses) - np.asarray(other.losses)
        of_gain, of_rise = (
            one.std(ddof=1) / len(one) ** 0.5 if len(one) > 1 else 0.0 for one in (gain, rise)
        )
        fewer = gain.mean() < -min(of_gain, FEWER) * (1 + 1e-9)
        return bool(fewer or (gain.mean() <= 0 and rise.mean() > max(of_rise, UNLIKELIER)))

    def error(self, photos: int) -> float:
        """Standard error of the accuracy, from so many photos; at least that of one mistake."""
        p = min(self.value[0], 1 - 1 / photos)
        return float(np.sqrt(p * (1 - p) / photos))


#: Is this score, of weights that so many photos were seen for, good enough to be given?
Enough = Callable[[Score, int], bool]


@dataclass
class Best:
    """The best weights so far, and how it came to them.

    rows: of the learning curve, one an evaluation. start: the weights before the first step. stale: evaluations
    since the best.
    """

    score: Score | None = None
    state: State = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    recent: list[State] = field(default_factory=list)
    stale: int = 0
    start: State = field(default_factory=dict)

    def consider(self, state: Mapping[str, Tensor], score: Score) -> bool:
        """Keep a copy of these weights if they are better than all before."""
        self.stale += 1
        if self.score is not None and not score.beats(self.score):
            return False
        self.score, self.state, self.stale = score, copied(state), 0
        return True

    def remember(self, state: Mapping[str, Tensor]) -> None:
        """Keep a snapshot for the soup."""
        self.recent = [*self.recent[-(SOUP - 1) :], copied(state)]

    def mixture(self, fewest: int = 2) -> State | None:
        """The soup of the last snapshots, if there are as many."""
        return soup(self.recent) if len(self.recent) >= fewest else None

    def settle(
        self,
        last: Mapping[str, Tensor],
        score: Score,
        photos: int,
        enough: bool = True,
        always: bool = False,
    ) -> bool:
        """End with the last weights, ``always`` or, if they are good ``enough``, unless earlier ones were better beyond
        one standard error of so many photos.

        The best of many looks at a few held-out photos is mostly the luckiest.
        """
        assert self.score is not None
        near = score.value[0] >= self.score.value[0] - self.score.error(photos)
        good = always or (enough and near)
        if good:
            self.score, self.state = score, copied(last)
        return good

    # -- checkpoints

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"best.{name}": value for name, value in self.state.items()}
        for number, state in enumerate(self.recent):
            tensors |= {f"recent{number}.{name}": value for name, value in state.items()}
        tensors |= {f"start.{name}": value for name, value in self.start.items()}
        return tensors, {
            "score": self.score,
            "rows": self.rows,
            "stale": self.stale,
            "recent": len(self.recent),
        }

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Best:
        def part(prefix: str) -> State:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        score = None if state["score"] is None else Score.read(state["score"])
        recent = [part(f"recent{number}.") for number in range(state["recent"])]
        return cls(score, part("best."), list(state["rows"]), recent, state["stale"], part("start."))
