"""Squeeze-and-excitation: each photo says how much each channel counts."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from torchvision.ops import SqueezeExcitation as Gate

from fieldmark.methods import Card, base
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.fusion import level_widths, levels

CARD = Card(
    cls="SqueezeExcitation",
    family="attention",
    title="Squeeze-and-excitation",
    year=2018,
    idea="channel attention: from the means of all channels a small network decides how much each of them counts",
    source="Hu et al., Squeeze-and-Excitation Networks, CVPR 2018",
    equation="s = sigmoid(W2 relu(W1 mean(X))), z = mean(s X), for the maps of the last stages",
    when="as the lightest attention, on networks that have none of their own (ResNet, VGG, EfficientNet-Lite)",
)
#: Fewest units that see all channels.
FEWEST = 8


class SqueezeExcitation(base.Method):
    """One part a stage: its gated map [B, C, H, W], averaged over places and brought to mean 0 and variance 1, so
    that maps of any magnitude serve.

    The paper puts gates behind every block and trains from scratch. Here they stand behind the last stages of a
    pretrained network, whose own later stages still see the maps that they know.
    """

    class Options(base.Options):
        stages: int = Field(2, ge=1, le=64, description="last stages with gates, each pooled")
        reduction: int = Field(16, ge=1, description="channels for each unit between them (the paper's r)")

    def build(self, backbone: Backbone) -> None:
        widths = level_widths(backbone, self.options.stages)
        self.gates = nn.ModuleList(Gate(c, max(FEWEST, c // self.options.reduction)) for c in widths)

    def parts(self, features: Features) -> list[Tensor]:
        maps = levels(features, self.options.stages)
        pooled = [gate(x).mean((2, 3)) for gate, x in zip(self.gates, maps, strict=True)]
        return [layer_norm(z, z.shape[1:]) for z in pooled]
