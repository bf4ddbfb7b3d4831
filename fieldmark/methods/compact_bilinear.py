"""Compact bilinear pooling: a sketch of all products of channels."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fieldmark.methods import Card, base
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.pooling import FixedReduction, l2_normalise
from fieldmark.nn.sketch import TensorSketch, level, signed_root

CARD = Card(
    cls="CompactBilinear",
    family="pooling",
    title="Compact bilinear pooling",
    year=2016,
    idea="bilinear pooling, whose 512 x 512 products are hashed into 8192 numbers (a tensor sketch)",
    source="Gao et al., Compact Bilinear Pooling, CVPR 2016",
    equation="z = y / |y|, y = sign(p) sqrt(|p|), p = mean of IFFT(FFT(S1 x) * FFT(S2 x)) over positions",
    instant=True,
    paper="CUB-200-2011 84.0% (VGG-16, 448 px, 8192 entries)",
    when="in place of bilinear, where more of the map's channels shall count and the descriptor stay short",
)
#: Channels whose products are sketched: each pair is a number in the graph. Those of VGG-16.
MOST_CHANNELS = 512


class CompactBilinear(base.Method):
    """One part: the rooted sketch of the last map's products, rows of unit length.

    Wider maps than VGG-16's are first brought to 512 channels by a fixed projection, which fine-tuning trains; all are
    brought to a mean square of 1, as in `bilinear`.
    """

    class Options(base.Options):
        entries: int = Field(8192, ge=16, le=base.MOST_ENTRIES, description="length of the sketch")

    def build(self, backbone: Backbone) -> None:
        self.reduce = FixedReduction(backbone.width, MOST_CHANNELS, seed=1)
        self.sketch = TensorSketch(self.reduce.out_channels, self.options.entries, seed=2)

    def parts(self, features: Features) -> list[Tensor]:
        x = self.reduce(features.last)
        with torch.autocast(x.device.type, enabled=False):  # sums of squares want single precision
            return [l2_normalise(signed_root(self.sketch(level(x.float())))).to(x.dtype)]
