"""The losses, one a file: a function, and a module beside it. A new one is a file here and a card below.

This table and `parse` are read without importing torch; `fieldmark.losses.combine.build` makes the modules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fieldmark.runtime.errors import UsageError

DEFAULT_LOSS = "cross_entropy"


@dataclass(frozen=True)
class Card:
    """What a loss is.

    home: ``module:class``; needs: what it looks at, logits [B, C] or the embedding [B, E]; holds: what of its
    own it keeps between steps (nothing, buffers, or parameters that the optimiser must be given); source:
    the paper.
    """

    name: str
    home: str
    title: str
    needs: Literal["logits", "embedding"]
    holds: Literal["nothing", "buffers", "parameters"]
    source: str


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
    ),
    Card(
        name="triplet",
        home="fieldmark.losses.triplet:Triplet",
        title="Triplet loss, batch-hard",
        needs="embedding",
        holds="nothing",
        source="Hermans, Beyer, Leibe, In Defense of the Triplet Loss for Person Re-Identification, 2017",
    ),
    Card(
        name="center",
        home="fieldmark.losses.center:Center",
        title="Centre loss",
        needs="embedding",
        holds="buffers",
        source="Wen et al., A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016",
    ),
    Card(
        name="cosine_margin",
        home="fieldmark.losses.cosine_margin:CosineMargin",
        title="Large-margin cosine loss (CosFace)",
        needs="embedding",
        holds="parameters",
        source="Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, CVPR 2018",
    ),
)

_TERM = re.compile(r"(?:(?P<weight>[^*]+)\*)?(?P<name>\w+)")
#: A plus between two terms, not the one of 1e+2.
_PLUS = re.compile(r"(?<![0-9.][eE])\+")


def card(name: str) -> Card:
    """The card of a loss. Raises UsageError for an unknown name."""
    for one in CARDS:
        if one.name == name:
            return one
    raise UsageError(f"no loss is called {name!r}; there are: {', '.join(one.name for one in CARDS)}")


def parse(spec: str | Mapping[str, float]) -> dict[str, float]:
    """``"cross_entropy+0.1*triplet"``, or a mapping of names to weights -> {name: weight}, in that order.

    Raises UsageError for an unknown name, a name given twice, a weight that is not a number above 0, and for
    a sum without a loss of the logits: the others train the embedding, and the head would stay untrained.
    """
    weights: dict[str, float] = {}
    for name, weight in spec.items() if isinstance(spec, Mapping) else _terms(spec):
        card(name)
        if name in weights:
            raise UsageError(f"the loss {spec!r} names {name} twice")
        if not (isinstance(weight, int | float) and math.isfinite(weight) and weight > 0):
            raise UsageError(f"the weight of {name} is {weight!r}: it is a number above 0")
        weights[name] = float(weight)
    if not any(card(name).needs == "logits" for name in weights):
        given = " and ".join(weights) or "an empty loss"
        first = next(iter(weights), "triplet")
        raise UsageError(
            f"{given} would leave the head untrained: add a loss of the logits, as in {DEFAULT_LOSS}+0.1*{first}"
        )
    return weights


def _terms(spec: str) -> list[tuple[str, float]]:
    terms = []
    for text in _PLUS.split("".join(spec.split())):
        term = _TERM.fullmatch(text)
        if term is None:
            raise UsageError(f"{text!r} in the loss {spec!r} is not NAME or WEIGHT*NAME")
        try:
            weight = float(term["weight"] or 1)
        except ValueError:
            raise UsageError(f"{term['weight']!r} in the loss {spec!r} is not a number") from None
        terms.append((term["name"], weight))
    return terms
