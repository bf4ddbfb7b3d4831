"""Second-order pooling: which channels fire together, not only which fire."""

from __future__ import annotations

from torch import Tensor

from fieldmark.methods import Card
from fieldmark.methods.base import MOST_ENTRIES, Method
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.pooling import SecondOrder, l2_normalise

CARD = Card(
    cls="ISqrtCov",
    family="pooling",
    title="Normalised covariance pooling",
    year=2018,
    idea="how every two channels vary together: the matrix square root of their covariance, of the last two stages, "
    "beside the mean",
    source="Li et al., iSQRT-COV, CVPR 2018; Lin et al., B-CNN, ICCV 2015",
    equation="z = triu(sqrt(S)), S = X (I - 11^T / M) X^T / M; five Newton-Schulz steps for the root",
    instant=True,
    paper="CUB-200-2011 88.1% (ResNet-50, 448 px)",
    when="by default: look-alikes often differ in which channels are active together, not in which are active",
)
#: Channels kept of the last map, and the most kept of the map before it.
LAST, MIDDLE = 128, 112


class ISqrtCov(Method):
    """Three parts: normalised covariance of the last map and of the one before, and the pooled embedding.

    Marks that tell look-alikes apart are small; the map before the last sees them at twice the resolution. The paper
    takes the last map alone, brought to 256 channels by a learned convolution with batch norm and ReLU. Here a fixed
    projection leaves fewer, so that descriptors of frozen backbones can be kept; fine-tuning trains it.
    """

    def build(self, backbone: Backbone) -> None:
        last, middle = backbone.channels[-1], backbone.channels[-2]
        keep_last = min(last, LAST)
        room = MOST_ENTRIES - backbone.embedding - keep_last * (keep_last + 1) // 2
        keep_middle = min(middle, MIDDLE)
        while keep_middle > 1 and keep_middle * (keep_middle + 1) // 2 > room:
            keep_middle -= 1
        self.last = SecondOrder(last, keep_last, seed=1)
        self.middle = SecondOrder(middle, keep_middle, seed=2)

    def parts(self, features: Features) -> list[Tensor]:
        middle, last = features.maps[-2:]
        return [self.last(last), self.middle(middle), l2_normalise(features.embedding)]
