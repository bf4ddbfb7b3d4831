"""Bilinear pooling: every product of two channels, averaged over the photo."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fieldmark.methods import Card, base
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.pooling import FixedReduction, UpperTriangle, l2_normalise
from fieldmark.nn.sketch import bilinear, level, signed_root

CARD = Card(
    cls="Bilinear",
    family="pooling",
    title="Bilinear pooling",
    year=2015,
    idea="which channels of the last map are active together: the mean product of every two, with a signed square root",
    source="Lin et al., Bilinear CNN Models for Fine-grained Visual Recognition, ICCV 2015",
    equation="z = y / |y|, y = sign(B) sqrt(|B|), B = X X^T / (H W)",
    instant=True,
    paper="CUB-200-2011 84.1% (VGG-M and VGG-D, 448 px)",
    when="to follow the first second-order method; the later isqrt_cov has the better published result",
)


class Bilinear(base.Method):
    """One part: the upper triangle of the rooted products of the last map's channels, rows of unit length.

    The paper keeps all 512 x 512 products. Here a fixed projection first leaves ``channels`` of them, so that a
    descriptor can be kept; fine-tuning trains it. The triangle holds all: the matrix is symmetric. Maps are first
    brought to a mean square of 1, so that what the root adds to avoid an endless slope is small on every backbone.
    """

    class Options(base.Options):
        channels: int = Field(128, ge=2, le=180, description="channels of the last map that are multiplied")

    def build(self, backbone: Backbone) -> None:
        self.reduce = FixedReduction(backbone.width, self.options.channels, seed=1)
        self.triangle = UpperTriangle(self.reduce.out_channels)

    def parts(self, features: Features) -> list[Tensor]:
        x = self.reduce(features.last)
        with torch.autocast(x.device.type, enabled=False):  # sums of squares want single precision
            products = bilinear(level(x.float()))
            return [l2_normalise(self.triangle(signed_root(products))).to(x.dtype)]
