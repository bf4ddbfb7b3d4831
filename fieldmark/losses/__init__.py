"""The losses, one a file: a function, and a module beside it. A new one is a file here and a card below.

This table and `parse` are read without importing torch; `fieldmark.losses.combine.build` makes the modules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fieldmark.runtime.errors import UsageError

DEFAULT_LOSS = "cross_entropy"


class Setting(NamedTuple):
    """A number that a loss can be given, by its name in the constructor, from ``least`` to ``most``."""

    name: str
    default: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.name} ({self.least:g} to {self.most:g})"


class Term(NamedTuple):
    """A loss in a sum: its factor, and the settings that were given for it."""

    weight: float
    settings: dict[str, float]


@dataclass(frozen=True)
class Card:
    """What a loss is.

    home: ``module:class``; needs: what it looks at, logits [B, C] or the embedding [B, E]; holds: what of its
    own it keeps between steps (nothing, buffers, or parameters that the optimiser must be given); source:
    the paper; settings: what can be set; pairs: does it compare photos of one class, so that batches must hold
    several of them?
    """

    name: str
    home: str
    title: str
    needs: Literal["logits", "embedding"]
    holds: Literal["nothing", "buffers", "parameters"]
    source: str
    settings: tuple[Setting, ...] = ()
    pairs: bool = False


CARDS = (
    Card(
        name="cross_entropy",
        home="fieldmark.losses.cross_entropy:CrossEntropy",
        title="Cross-entropy",
        needs="logits",
        holds="nothing",
        source="label smoothing: Szegedy et al., Rethinking the Inception Architecture, CVPR 2016",
    ),
    Card(
        name="focal",
        home="fieldmark.losses.focal:Focal",
        title="Focal loss",
        needs="logits",
        holds="nothing",
        source="Lin et al., Focal Loss for Dense Object Detection, ICCV 2017",
        settings=(Setting("gamma", 2.0, 0.0, 10.0),),
    ),
    Card(
        name="mean_squared_error",
        home="fieldmark.losses.mean_squared_error:MeanSquaredError",
        title="Mean squared error of the probabilities",
        needs="logits",
        holds="nothing",
        source="Brier, Verification of Forecasts Expressed in Terms of Probability, Monthly Weather Review 1950",
    ),
    Card(
        name="contrastive",
        home="fieldmark.losses.contrastive:Contrastive",
        title="Contrastive loss",
        needs="embedding",
        holds="nothing",
        source="Hadsell, Chopra, LeCun, Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006",
        settings=(Setting("margin", 1.0, 0.0, 2.0),),
        pairs=True,
    ),
    Card(
        name="triplet",
        home="fieldmark.losses.triplet:Triplet",
        title="Triplet loss, batch-hard",
        needs="embedding",
        holds="nothing",
        source="Hermans, Beyer, Leibe, In Defense of the Triplet Loss for Person Re-Identification, 2017",
        settings=(Setting("margin", 0.2, 0.0, 2.0),),
        pairs=True,
    ),
    Card(
        name="center",
        home="fieldmark.losses.center:Center",
        title="Centre loss",
        needs="embedding",
        holds="buffers",
        source="Wen et al., A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016",
        settings=(Setting("rate", 0.5, 0.0, 1.0),),
    ),
    Card(
        name="cosine_margin",
        home="fieldmark.losses.cosine_margin:CosineMargin",
        title="Large-margin cosine loss (CosFace)",
        needs="embedding",
        holds="parameters",
        source="Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, CVPR 2018",
        settings=(Setting("margin", 0.35, 0.0, 1.0), Setting("scale", 64.0, 1.0, 1000.0)),
    ),
)

_TERM = re.compile(r"(?:(?P<weight>[^*(]+)\*)?(?P<name>\w+)(?:\((?P<settings>[^()]*)\))?")
#: A plus between two terms, not the one of 1e+2, nor one in brackets.
_PLUS = re.compile(r"(?<![0-9.][eE])\+(?![^(]*\))")


def card(name: str) -> Card:
    """The card of a loss. Raises UsageError for an unknown name."""
    for one in CARDS:
        if one.name == name:
            return one
    raise UsageError(f"no loss is called {name!r}; there are: {', '.join(one.name for one in CARDS)}")


def parse(spec: str | Mapping[str, float]) -> dict[str, Term]:
    """``"focal(gamma=3)+0.1*triplet(margin=0.3)"``, or a mapping of such names to weights -> {name: `Term`}, in
    that order.

    Raises UsageError for an unknown name or setting, one given twice, a weight that is not a number above 0, a
    setting outside its range, and for a sum without a loss of the logits: the others train the embedding, and
    the head would stay untrained.
    """
    terms: dict[str, Term] = {}
    for name, term in _mapped(spec) if isinstance(spec, Mapping) else _terms(spec):
        if name in terms:
            raise UsageError(f"the loss {spec!r} names {name} twice")
        if not (isinstance(term.weight, int | float) and math.isfinite(term.weight) and term.weight > 0):
            raise UsageError(f"the weight of {name} is {term.weight!r}: it is a number above 0")
        terms[name] = term
    if not any(card(name).needs == "logits" for name in terms):
        given = " and ".join(terms) or "an empty loss"
        first = next(iter(terms), "triplet")
        raise UsageError(
            f"{given} would leave the head untrained: add a loss of the logits, as in {DEFAULT_LOSS}+0.1*{first}"
        )
    return terms


def needs_pairs(spec: str | Mapping[str, float]) -> bool:
    """Does a part of the sum compare photos of one class? Raises UsageError like `parse`."""
    return any(card(name).pairs for name in parse(spec))


def _terms(spec: str) -> list[tuple[str, Term]]:
    return [_term(text, spec) for text in _PLUS.split("".join(spec.split()))]


def _mapped(spec: Mapping[str, float]) -> list[tuple[str, Term]]:
    terms = []
    for text, weight in spec.items():
        if "*" in text:
            raise UsageError(f"{text!r} in the loss {spec!r} is not NAME or NAME(SETTING=NUMBER)")
        name, term = _term("".join(text.split()), text)
        terms.append((name, term._replace(weight=weight)))
    return terms


def _term(text: str, spec: str) -> tuple[str, Term]:
    found = _TERM.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} in the loss {spec!r} is not NAME, WEIGHT*NAME or NAME(SETTING=NUMBER)")
    name = found["name"]
    weight = _number(found["weight"] or "1", f"{found['weight']!r} in the loss {spec!r} is not a number")
    return name, Term(weight, _settings(card(name), found["settings"] or ""))


def _settings(loss: Card, text: str) -> dict[str, float]:
    """``"margin=0.3,scale=30"`` -> {name: value}."""
    known = {one.name: one for one in loss.settings}
    given: dict[str, float] = {}
    for part in text.split(",") if text else ():
        name, _, value = part.partition("=")
        if name not in known:
            there = f"its settings: {', '.join(map(str, loss.settings))}" if known else "it has none"
            raise UsageError(f"the loss {loss.name} has no setting {name!r}; {there}")
        if name in given:
            raise UsageError(f"the loss {loss.name} is given {name} twice")
        one = known[name]
        why = (
            f"{name} of the loss {loss.name} is {value!r}: it is a number from {one.least:g} to {one.most:g}"
        )
        given[name] = _number(value, why)
        if not one.least <= given[name] <= one.most:  # nor is it NaN
            raise UsageError(why)
    return given


def _number(text: str, why: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(why) from None
