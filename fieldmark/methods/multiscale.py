"""Feature pyramid fusion: fine maps that know what the coarse ones saw."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import layer_norm
from torchvision.ops import FeaturePyramidNetwork

from fieldmark.methods import Card, base
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.fusion import level_widths, levels

CARD = Card(
    cls="Multiscale",
    family="attention",
    title="Multi-scale feature fusion",
    year=2017,
    idea="a feature pyramid: each coarse map is enlarged and added to the finer one, and every level is pooled",
    source="Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017",
    equation="P_l = conv3(conv1(X_l) + up(P'_(l+1))), P'_l the sum in it, z = [mean(relu(P_l)) for all l]",
    when="where marks are of very different sizes, and small ones are lost in the last map",
)


class Multiscale(base.Method):
    """One part a level: [B, channels], mean of the fused map above 0, brought to mean 0 and variance 1.

    The paper's pyramid has no activation, and a mean over places would undo it: it is taken of what lies above 0.
    Where it looks: how strong the finest fused map is.
    """

    class Options(base.Options):
        stages: int = Field(3, ge=1, le=64, description="last stages that are fused")
        channels: int = Field(256, ge=1, le=2048, description="channels of every fused map (the paper's d)")

    def build(self, backbone: Backbone) -> None:
        self.pyramid = FeaturePyramidNetwork(
            level_widths(backbone, self.options.stages), self.options.channels
        )

    def fused(self, features: Features) -> list[Tensor]:
        """[B, channels, H, W], fine to coarse."""
        maps = levels(features, self.options.stages)
        fused = self.pyramid({str(number): x for number, x in enumerate(maps)})
        return [x.relu() for x in fused.values()]

    def parts(self, features: Features) -> list[Tensor]:
        pooled = [x.mean((2, 3)) for x in self.fused(features)]
        return [layer_norm(z, z.shape[1:]) for z in pooled]

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        return self.fused(self.backbone(self.resamplers[0](images)))[0].mean(1)
