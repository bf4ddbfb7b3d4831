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
from fieldmark.runtime.errors import FieldmarkError

#: Entries of one photo's descriptor at one scale: 32 KB in half precision.
MOST_ENTRIES = 16_384


class Method(nn.Module):
    """Backbone -> descriptor [B, d] -> logits [B, C].

    scales: sides in pixels at which the photo is looked at; the largest is the input's. Smaller ones are made
    inside the graph. ``widths`` are the widths of a descriptor's parts, scale by scale; they add up to d.
    Raises FieldmarkError in a line for scales that the backbone cannot look at.
    """

    def __init__(self, backbone: Backbone, scales: Sequence[int] = ()):
        super().__init__()
        self.backbone = backbone
        self.scales = sorted(set(scales), reverse=True) or [backbone.size]
        if self.scales[0] > backbone.size or self.scales[-1] < 1:
            raise FieldmarkError(
                f"scales {self.scales} do not lie in 1 to {backbone.size} px, the photo's side"
            )
        self.resamplers = nn.ModuleList(
            nn.Identity() if s == backbone.size else Resample(backbone.size, s) for s in self.scales
        )
        self.build(backbone)
        self.widths = [width for r in self.resamplers for width in self._widths(r)]
        self.head: nn.Module = nn.Identity()
        self.projection: nn.Module = nn.Identity()

    def _widths(self, resample: nn.Module) -> list[int]:
        with torch.inference_mode():
            images = resample(torch.zeros(1, 3, self.backbone.size, self.backbone.size))
            try:
                return [part.shape[1] for part in self.parts(self.backbone(images))]
            except Exception as error:
                name, why = self.backbone.source.architecture, str(error).splitlines()[0]
                raise FieldmarkError(
                    f"backbone {name} cannot look at {images.shape[-1]} px: {why}"
                ) from error

    def build(self, backbone: Backbone) -> None:
        """Make the method's own layers."""

    def add_head(self, classes: int, embedding: int, rank: int | None = None) -> None:
        """Make the linear head [d -> classes], through ``rank`` dimensions if given, and the projection."""
        width = sum(self.widths)
        full = nn.Linear(rank or width, classes)
        self.head = nn.Sequential(nn.Linear(width, rank, bias=False), full) if rank else full
        self.projection = nn.Linear(width, embedding)

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
