"""A trained weight map on the map of every layer."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from fieldmark.methods import Card, base
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.fusion import area_resize, level_widths, levels

CARD = Card(
    cls="MapAttention",
    family="attention",
    title="Weight maps on every layer's map",
    year=2018,
    idea="each stage's map is multiplied by a trained weight map; the sum of all, where positive, goes to a dense head",
    source="soft attention as textbooks of fine-grained recognition have it; maps of several layers: Jetley et al., "
    "Learn to Pay Attention, ICLR 2018",
    equation="A = relu(sum_l W_l * norm(conv1_l(X_l))), z = relu(W mean(A) + b)",
    when="where objects are at the same place in every photo, as on a conveyor belt",
)


class MapAttention(base.Method):
    """One part: [B, hidden].

    The textbook multiplies and adds the maps of all convolution layers, which have no common shape. Here they are the
    last maps of the stages, and a 1x1 convolution brings each to
    ``channels`` of mean 0 and variance 1 in each photo, and all are resized to the grid of the last map but one.
    A weight map [channels, h, w] is the same for all photos, at first 1 for each layer. Where it looks: the sum A.
    """

    class Options(base.Options):
        stages: int = Field(0, ge=0, le=64, description="last stages that are weighted; 0: all")
        channels: int = Field(256, ge=1, le=2048, description="channels that each map is brought to")
        hidden: int = Field(512, ge=1, le=base.MOST_ENTRIES, description="units of the dense layer")

    def build(self, backbone: Backbone) -> None:
        widths, channels = level_widths(backbone, self.options.stages), self.options.channels
        self.side = max(1, backbone.size // backbone.strides[-2])
        self.convs = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.norm = nn.GroupNorm(1, channels, affine=False)
        self.weights = nn.ParameterList(torch.ones(channels, self.side, self.side) for _ in widths)
        self.dense = nn.Sequential(nn.Linear(channels, self.options.hidden), nn.ReLU())

    def attended(self, features: Features) -> Tensor:
        """A: [B, channels, h, w]."""
        maps = levels(features, self.options.stages)
        # Resized before the convolution: the same sum, over far fewer places.
        maps = [
            self.norm(conv(area_resize(x, self.side, self.side)))
            for conv, x in zip(self.convs, maps, strict=True)
        ]
        return torch.stack([weight * x for weight, x in zip(self.weights, maps, strict=True)]).sum(0).relu()

    def parts(self, features: Features) -> list[Tensor]:
        return [self.dense(self.attended(features).mean((2, 3)))]

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        return self.attended(self.backbone(self.resamplers[0](images))).mean(1)
