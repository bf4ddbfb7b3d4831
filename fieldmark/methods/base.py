"""What every method shares: descriptors at one or several scales, a linear head, plain logits.

A method is an ``nn.Module`` over any backbone. It says how the backbone's features become the parts of a
descriptor; scales, head and embedding are the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.pooling import l2_normalise

#: Entries of one photo's descriptor at one scale: 32 KB in half precision.
MOST_ENTRIES = 16_384


class Method(nn.Module):
    """Backbone -> descriptor [B, d] -> logits [B, C].

    scales: sides in pixels at which the photo is looked at; the largest is the input's. Smaller ones are made
    inside the graph. ``widths`` are the widths of a descriptor's parts, scale by scale; they add up to d.
    """

    def __init__(self, backbone: Backbone, scales: Sequence[int] = ()):
        super().__init__()
        self.backbone = backbone
        self.scales = sorted(scales, reverse=True) or [backbone.size]
        self.resamplers = nn.ModuleList(
            nn.Identity() if s == backbone.size else Resample(backbone.size, s) for s in self.scales
        )
        self.build(backbone)
        with torch.inference_mode():
            images = torch.zeros(1, 3, backbone.size, backbone.size)
            parts = [part.shape[1] for r in self.resamplers for part in self.parts(backbone(r(images)))]
        self.widths = parts
        self.head: nn.Module = nn.Identity()
        self.projection: nn.Module = nn.Identity()

    def build(self, backbone: Backbone) -> None:
        """Make the method's own layers."""

    def parts(self, features: Features) -> list[Tensor]:
        """Features of one scale -> the parts of its descriptor, each [B, d_i] with rows of unit length."""
        raise NotImplementedError

    def describe(self, images: Tensor) -> Tensor:
        """images [B, 3, S, S] -> descriptors [B, d]."""
        return torch.cat(
            [part for resample in self.resamplers for part in self.parts(self.backbone(resample(images)))], 1
        )

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, S, S] -> logits [B, C]."""
        return self.head(self.describe(images))

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """``descriptor`` [B, d] and ``embedding`` [B, e] with rows of unit length."""
        descriptor = self.describe(images)
        return {"descriptor": descriptor, "embedding": l2_normalise(self.projection(descriptor))}


class Resample(nn.Module):
    """Antialiased bilinear resize of square images as two matrix products, the same in every engine."""

    matrix: Tensor

    def __init__(self, source: int, target: int):
        super().__init__()
        rows = torch.eye(source)[None, None]
        resized = nn.functional.interpolate(
            rows, size=(target, source), mode="bilinear", antialias=True, align_corners=False
        )
        self.register_buffer("matrix", resized[0, 0].contiguous(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.matrix @ images @ self.matrix.T
