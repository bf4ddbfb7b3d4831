"""What every method shares: descriptors at one or several scales, a linear head, plain logits, a training step.

A method is an ``nn.Module`` over any backbone. It says how the backbone's features become the parts of a
descriptor; scales, head and embedding are the same for all. One that learns in a way of its own overrides
`Learner.training_step`, one that looks at crops of the photo `Method.describe`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from fieldmark.methods.learner import Learner
from fieldmark.methods.task import Task
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.crops import enlarged
from fieldmark.nn.pooling import l2_normalise
from fieldmark.runtime.errors import FieldmarkError, UsageError

#: Entries of one photo's descriptor at one scale: 32 KB in half precision.
MOST_ENTRIES = 16_384


class Options(BaseModel):
    """What a method lets its user set. A method with settings has a class of its own, with a description of each."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Found(NamedTuple):
    """Things of one photo, the surest first. boxes: [n, 4] left, top, right and bottom as shares of its sides; scores:
    [n], 0 to 1; classes: [n] numbers in ``Method.task``."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


class Method(Learner):
    """Backbone -> descriptor [B, d] -> logits [B, C].

    scales: sides in pixels at which the photo is looked at; the largest is the input's. Smaller ones are made
    inside the graph. task: what is told apart, for methods whose layers depend on it; settings: of `Options`.
    ``widths`` are the widths of a descriptor's parts, scale by scale; they add up to d.

    tta: is the answer to look again, at a crop (test-time augmentation)? Methods that can, do.

    Raises FieldmarkError in a line for scales that the backbone cannot look at, or a backbone that cannot serve.
    """

    Options: ClassVar[type[Options]] = Options

    def __init__(
        self,
        backbone: Backbone,
        scales: Sequence[int] = (),
        task: Task | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.backbone, self.task = backbone, task or Task(2)
        self.options: Any = options_of(type(self), settings or {})
        self.tta = False
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
            training = self.training
            self.eval()
            try:
                return [part.shape[1] for part in self.parts(self.backbone(images))]
            except Exception as error:
                name, why = self.backbone.source.architecture, str(error).splitlines()[0]
                raise FieldmarkError(
                    f"backbone {name} cannot look at {images.shape[-1]} px: {why}"
                ) from error
            finally:
                self.train(training)

    def build(self, backbone: Backbone) -> None:
        """Make the method's own layers."""

    def add_head(self, classes: int, embedding: int, rank: int | None = None) -> None:
        """Make the linear head [d -> classes], through ``rank`` dimensions if given, and the projection."""
        width = sum(self.widths)
        full = nn.Linear(rank or width, classes)
        self.head = nn.Sequential(nn.Linear(width, rank, bias=False), full) if rank else full
        self.projection = nn.Linear(width, embedding)

    def parts(self, features: Features) -> list[Tensor]:
        """Features of one scale -> the parts of its descriptor, each [B, d_i]; of frozen ones with rows of unit
        length."""
        raise NotImplementedError

    def describe(self, images: Tensor) -> Tensor:
        """images [B, 3, S, S] -> descriptors [B, d]."""
        return torch.cat(
            [part for resample in self.resamplers for part in self.parts(self.backbone(resample(images)))], 1
        )

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """``descriptor`` [B, d] and ``embedding`` [B, e] with rows of unit length."""
        descriptor = self.describe(images)
        return {"descriptor": descriptor, "embedding": l2_normalise(self.projection(descriptor))}

    # -- what it looks at

    def boxes(self, images: Tensor, least: float = 0.05) -> list[Found] | None:
        """The things in each photo with a score of ``least`` and more, of methods that were taught boxes; None: only
        `attention` tells where they are."""
        return None

    def attention(self, images: Tensor) -> Tensor:
        """Where it looks: [B, h, w], 0 and more.

        By default how much each place of the last map speaks for the class that is answered (Grad-CAM, Selvaraju et
        al., ICCV 2017, equations 1 and 2), the sum over the scales, as large as the largest one's map.
        """
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            seen = [self.backbone(resample(images)) for resample in self.resamplers]
            z = torch.cat([part for features in seen for part in self.parts(features)], 1)
            lasts = [features.maps[-1] for features in seen]
            slopes = torch.autograd.grad(self.head(z).amax(1).sum(), lasts, allow_unused=True)
        size, total = tuple(lasts[0].shape[2:]), lasts[0].new_zeros(())
        for last, slope in zip(lasts, slopes, strict=True):
            if (
                slope is None
            ):  # the answer goes by another way, as from a class token: how much there is to see
                found = last.detach().square().mean(1).sqrt()
            else:
                found = (slope.mean((2, 3), keepdim=True) * last.detach()).sum(1).clamp_min(0)
            total = total + enlarged(found, size)
        return total


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


def options_of(cls: type[Method], settings: Mapping[str, Any]) -> Options:
    """A method's options from plain values. Raises UsageError, in a line, for one that cannot be."""
    try:
        return cls.Options.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(cls.Options.model_fields) or "none"
        raise UsageError(
            f"{cls.__name__}: {name} is {first['input']!r}: {first['msg'].lower()}; its settings: {known}"
        ) from None
