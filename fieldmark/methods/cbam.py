"""CBAM: which channels count, then which places."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from fieldmark.methods import Card, base
from fieldmark.nn.attention import ChannelGates, SpatialGates
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.fusion import level_widths, levels
from fieldmark.runtime.errors import UsageError

CARD = Card(
    cls="CBAM",
    family="attention",
    title="Convolutional block attention (CBAM)",
    year=2018,
    idea="attention in two steps: a gate for every channel, then one for every place",
    source="Woo et al., CBAM: Convolutional Block Attention Module, ECCV 2018",
    equation="X' = Mc(X) X, X'' = Ms(X') X', z = mean(X''), for the maps of the last stages",
    when="where the object fills little of the photo; its gates show where it looks",
)
#: Fewest units that see all channels.
FEWEST = 8


class CBAM(base.Method):
    """One part a stage: its map [B, C, H, W] behind both gates, averaged over places and brought to mean 0 and
    variance 1, so that maps of any magnitude serve.

    The paper puts both behind every block and trains from scratch; here they stand behind the last stages of a
    pretrained network. Where it looks: the gates of places, of the last stage.
    """

    class Options(base.Options):
        stages: int = Field(2, ge=1, le=64, description="last stages with gates, each pooled")
        reduction: int = Field(16, ge=1, description="channels for each unit between them (the paper's r)")
        kernel: int = Field(7, ge=1, le=31, description="side of the kernel that judges places, odd")

    def build(self, backbone: Backbone) -> None:
        widths, options = level_widths(backbone, self.options.stages), self.options
        if options.kernel % 2 == 0:
            raise UsageError(
                f"CBAM: kernel is {options.kernel}, but must be odd: {options.kernel + 1} would serve"
            )
        self.channels = nn.ModuleList(ChannelGates(c, max(FEWEST, c // options.reduction)) for c in widths)
        self.places = nn.ModuleList(SpatialGates(options.kernel) for _ in widths)

    def gated(self, features: Features) -> list[tuple[Tensor, Tensor]]:
        """For each stage the map behind the gates of its channels [B, C, H, W], and the gates of its places
        [B, 1, H, W]."""
        maps = levels(features, self.options.stages)
        chosen = [gates(x) * x for gates, x in zip(self.channels, maps, strict=True)]
        return [(x, gates(x)) for gates, x in zip(self.places, chosen, strict=True)]

    def parts(self, features: Features) -> list[Tensor]:
        pooled = [(x * place).mean((2, 3)) for x, place in self.gated(features)]
        return [layer_norm(z, z.shape[1:]) for z in pooled]

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        return self.gated(self.backbone(self.resamplers[0](images)))[-1][1][:, 0]
