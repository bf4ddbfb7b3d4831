"""The methods, one readable file each. A new one is a file here and a card below."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from fieldmark.runtime.errors import UsageError

if TYPE_CHECKING:
    from fieldmark.methods.base import Method

DEFAULT_METHOD = "isqrt_cov"


@dataclass(frozen=True)
class Card:
    """What a method is, for tables and for finding it; read without importing torch.

    home: ``module:class``; idea: in a line; source: papers.
    """

    name: str
    home: str
    title: str
    year: int
    idea: str
    source: str


CARDS = (
    Card(
        name="plain",
        home="fieldmark.methods.plain:Plain",
        title="Plain backbone",
        year=2014,
        idea="the backbone's pooled embedding and a linear head",
        source="Razavian et al., CNN Features off-the-shelf, CVPR Workshops 2014",
    ),
    Card(
        name="isqrt_cov",
        home="fieldmark.methods.isqrt_cov:ISqrtCov",
        title="Normalised covariance pooling",
        year=2018,
        idea="mean and matrix square root of the channel covariance, of the last two stages",
        source="Li et al., iSQRT-COV, CVPR 2018; Lin et al., B-CNN, ICCV 2015",
    ),
)


def card(name: str) -> Card:
    """The card of a method. Raises UsageError for an unknown name."""
    for one in CARDS:
        if one.name == name:
            return one
    raise UsageError(f"no method is called {name!r}; there are: {', '.join(one.name for one in CARDS)}")


def get(name: str) -> type[Method]:
    """The class of a method. Raises UsageError for an unknown name."""
    module, cls = card(name).home.split(":")
    return getattr(import_module(module), cls)
