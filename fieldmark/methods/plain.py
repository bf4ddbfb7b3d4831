"""The yardstick: the backbone's pooled embedding and a linear head."""

from __future__ import annotations

from torch import Tensor

from fieldmark.methods import Card
from fieldmark.methods.base import Method
from fieldmark.nn.backbone import Features
from fieldmark.nn.pooling import l2_normalise

CARD = Card(
    cls="Plain",
    family="pooling",
    title="Plain backbone",
    year=2014,
    idea="the backbone's pooled embedding and a linear head",
    source="Razavian et al., CNN Features off-the-shelf, CVPR Workshops 2014",
    equation="logits = W f / |f| + b, f the mean of the last map over its positions",
    instant=True,
    paper="CUB-200-2011 88.45% (ResNet-50 of ImageNet-21k, 448 px) and 91.87% (Swin-L of ImageNet-21k, 384 px), both "
    "as trained by mmpretrain",
    when="first, and as the yardstick: every other method is measured against it",
)


class Plain(Method):
    """One part: the pooled embedding [B, F], rows of unit length.

    The usual classifier reads f itself; of unit length it is also what instant mode and the search for similar photos
    read.
    """

    def parts(self, features: Features) -> list[Tensor]:
        return [l2_normalise(features.embedding)]
