"""The yardstick: the backbone's pooled embedding and a linear head."""

from __future__ import annotations

from torch import Tensor

from fieldmark.methods.base import Method
from fieldmark.nn.backbone import Features
from fieldmark.nn.pooling import l2_normalise


class Plain(Method):
    """One part: the pooled embedding [B, F], rows of unit length."""

    def parts(self, features: Features) -> list[Tensor]:
        return [l2_normalise(features.embedding)]
