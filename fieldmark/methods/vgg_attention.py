"""The textbook's soft attention on VGG16: attended, raw and earlier maps together, and a dense head."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation as Gate

from fieldmark.methods import Card, base
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.fusion import join, level_widths, levels

CARD = Card(
    cls="VGGAttention",
    family="attention",
    title="VGG16 with channel attention and fusion",
    year=2018,
    idea="channel attention on a frozen network: its last map, the same map gated, and earlier maps are joined for a "
    "dense head",
    source="the design of textbooks of fine-grained recognition; Simonyan and Zisserman, VGG, ICLR 2015; gates: Hu et "
    "al., CVPR 2018; fusion: Hariharan et al., Hypercolumns, CVPR 2015",
    equation="a = sigmoid(W2 relu(W1 mean(X))), J = [aX; X; earlier maps], z = relu(W mean(relu(conv1(J))) + b)",
    when="to follow the textbook, --backbone vgg16; with --set frozen=false all of the network learns",
)


class VGGAttention(base.Method):
    """One part: [B, hidden], of any backbone (the textbook's is VGG16, which is not the default here: its weights are
    half a gigabyte).

    The textbook joins maps of several sizes, whose shapes do not fit, and flattens them into a dense layer of tens of
    millions of weights. Here earlier maps are averaged to the grid of the last, a 1x1
    convolution fuses what is joined, and the mean over places goes to the dense layer. Each map is brought to mean 0
    and variance 1 in each photo before it is joined, so that none drowns the others.
    """

    class Options(base.Options):
        frozen: bool = Field(True, description="does the backbone stay as it is?")
        stages: int = Field(3, ge=1, le=64, description="last stages that are joined")
        units: int = Field(
            1024, ge=1, le=16_384, description="dense units that see all channels and gate them"
        )
        channels: int = Field(512, ge=1, le=2048, description="channels after the maps are fused")
        hidden: int = Field(1024, ge=1, le=base.MOST_ENTRIES, description="units of the dense head")

    def build(self, backbone: Backbone) -> None:
        widths, options = level_widths(backbone, self.options.stages), self.options
        self.gates = Gate(widths[-1], options.units)
        self.norms = nn.ModuleList(nn.GroupNorm(1, c, affine=False) for c in [*widths, widths[-1]])
        self.fuse = nn.Sequential(nn.Conv2d(sum(widths) + widths[-1], options.channels, 1), nn.ReLU())
        self.dense = nn.Sequential(nn.Linear(options.channels, options.hidden), nn.ReLU())

    def begin(self, phase: int) -> None:
        if self.options.frozen:
            self.backbone.requires_grad_(False)

    def parts(self, features: Features) -> list[Tensor]:
        *earlier, last = levels(features, self.options.stages)
        maps = [norm(x) for norm, x in zip(self.norms, [*earlier, last, self.gates(last)], strict=True)]
        return [self.dense(self.fuse(join(maps, last.shape[2], last.shape[3])).mean((2, 3)))]
