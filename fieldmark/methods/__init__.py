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

    home: ``module:class``; idea: in a line; source: papers; backbone: does it stand on a pretrained one?
    """

    name: str
    home: str
    title: str
    year: int
    idea: str
    source: str
    backbone: bool = True


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
    Card(
        name="cnn",
        home="fieldmark.methods.cnn:TextbookCNN",
        title="Textbook CNN",
        year=1998,
        idea="a small convolutional network from scratch, every kind of layer an option",
        source="LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998",
        backbone=False,
    ),
)


def card(name: str) -> Card:
    """The card of a method. Raises UsageError for an unknown name."""
    for one in CARDS:
        if one.name == name:
            return one
    raise UsageError(f"no method is called {name!r}; there are: {', '.join(one.name for one in CARDS)}")


def get(name: str) -> type[Method]:
    """The class of a method over a backbone. Raises UsageError for another name."""
    one = card(name)
    if not one.backbone:
        raise UsageError(f"the method {name!r} has no backbone: it is trained from scratch")
    module, cls = one.home.split(":")
    return getattr(import_module(module), cls)
