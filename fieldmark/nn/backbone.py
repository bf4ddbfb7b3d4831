"""Any timm model as a feature pyramid: images in, maps of every stage and the pooled embedding out."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fieldmark.nn.weights import Source, allowed
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.preprocess import Preprocess

#: Side in pixels at which a backbone of free size looks at photos, where it was trained at less: frozen
#: features of small marks gain more from resolution than they lose by leaving the trained size.
DEFAULT_SIZE = 320
#: Sides in pixels that a photo may be resized to (see `Preprocess`).
SIZES = (8, 4096)


class Features(NamedTuple):
    """maps: one [B, C, H, W] a stage, fine to coarse; embedding: [B, F], what timm pools before its classifier;
    final: [B, F', H, W], the map that it is pooled from, where there is one; of transformers the tokens after the last
    norm (else the last of ``maps``)."""

    maps: list[Tensor]
    embedding: Tensor
    final: Tensor | None = None

    @property
    def last(self) -> Tensor:
        """``final``, or the last of ``maps``."""
        return self.maps[-1] if self.final is None else self.final


class Backbone(nn.Module):
    """A timm model without its classifier, for square images of ``size`` pixels.

    size: default is the trained one, or 320 px where the network takes any size and was trained at less.
    native: side it was trained at; fixed: is that the only one? channels: of each stage's map; strides: input pixels
    per position; embedding: width F; width, grid: channels and positions (down, across) of ``Features.last``.
    Raises FieldmarkError in a line for an unknown model, weights that do not fit, or a size it cannot take.
    """

    def __init__(self, source: Source, size: int | None = None):
        super().__init__()
        self.source = source
        if size is not None and not SIZES[0] <= size <= SIZES[1]:
            raise FieldmarkError(
                f"backbone {source.architecture} cannot take {size} px images: {SIZES[0]} to {SIZES[1]} it may be"
            )
        self.model: Any = _create(source, size)
        self.config = dict(self.model.pretrained_cfg)
        self.native = _native(self.model)
        self.fixed = _fixed_size(self.model)
        self.size = size or (self.native if self.fixed else max(self.native, DEFAULT_SIZE))
        try:
            with torch.inference_mode():
                probe = self.eval()(torch.zeros(1, 3, self.size, self.size))
        except Exception as error:
            raise FieldmarkError(
                f"backbone {source.architecture} cannot take {self.size} px images: {str(error).splitlines()[0]}"
            ) from error
        self.channels = [m.shape[1] for m in probe.maps]
        self.strides = [self.size // m.shape[2] for m in probe.maps]
        self.embedding, self.width = probe.embedding.shape[1], probe.last.shape[1]
        self.grid = probe.last.shape[2], probe.last.shape[3]

    def forward(self, images: Tensor) -> Features:
        """images: [B, 3, H, W], normalised as `preprocess` says."""
        final, maps = self.model.forward_intermediates(images, output_fmt="NCHW")
        prefix = getattr(self.model, "num_prefix_tokens", 0)
        return Features(
            maps, self.model.forward_head(final, pre_logits=True), _as_map(final, maps[-1], prefix)
        )

    def preprocess(self, **changes: Any) -> Preprocess:
        """The specification this backbone was trained with, at this size; ``changes`` override its fields."""
        config = self.config
        # timm crops at test time; look-alikes carry their marks to the border, so the whole photo is kept.
        fields = {
            "size": self.size,
            "mean": tuple(config.get("mean", (0.485, 0.456, 0.406))),
            "std": tuple(config.get("std", (0.229, 0.224, 0.225))),
            "interpolation": config.get("interpolation", "bicubic"),
        }
        return Preprocess(**{**fields, **{k: v for k, v in changes.items() if v is not None}})


def _as_map(final: Tensor, like: Tensor, prefix: int) -> Tensor | None:
    """What the network gives before it pools, as [B, C, H, W] with the places of ``like``; None where it has others.

    prefix: tokens that stand for no place (class token, registers).
    """
    height, width = like.shape[2:]
    if final.ndim == 3 and final.shape[1] - prefix == height * width:
        return final[:, prefix:].transpose(1, 2).reshape(final.shape[0], final.shape[2], height, width)
    if final.ndim == 4 and final.shape[2:] == like.shape[2:]:
        return final
    if final.ndim == 4 and final.shape[1:3] == like.shape[2:]:  # channels come last
        return final.permute(0, 3, 1, 2)
    return None


def _create(source: Source, size: int | None) -> Any:
    options = allowed(dict(source.options))
    if not timm.is_model(source.architecture):  # also refuses names that would make timm ask a hub
        raise FieldmarkError(
            f"timm has no architecture {source.architecture!r} (fieldmark backbones lists them)"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # random weights, where they are asked for, are the same each time
            model = _construct(source.architecture, size, options)
    except Exception as error:
        raise FieldmarkError(
            f"cannot build backbone {source.architecture}: {str(error).splitlines()[0]}"
        ) from error
    if not hasattr(model, "forward_intermediates"):
        raise FieldmarkError(f"backbone {source.architecture} gives no feature maps; choose another")
    if source.file is not None:
        try:
            state = _resized(model, load_file(source.file))
        except (OSError, SafetensorError) as error:
            raise FieldmarkError(
                f"cannot read {source.file}: {error}; it is damaged or no safetensors"
            ) from error
        wanted = model.state_dict()
        missing = [k for k in wanted if k not in state]
        wrong = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
        if missing or wrong:
            first = (missing + wrong)[0]
            raise FieldmarkError(
                f"{source.file.name} does not hold the weights of {source.architecture} "
                f"({len(missing)} missing, {len(wrong)} of another shape, first: {first})"
            )
        model.load_state_dict({k: state[k] for k in wanted})
    return model


def _construct(architecture: str, size: int | None, options: dict[str, Any]) -> Any:
    model = timm.create_model(architecture, pretrained=False, num_classes=0, **options)
    if size and size != _native(model) and _fixed_size(model):
        model = timm.create_model(
            architecture, pretrained=False, num_classes=0, **{**options, "img_size": size}
        )
    return model


def _native(model: Any) -> int:
    """The side in pixels at which the weights were trained."""
    return int(model.pretrained_cfg.get("input_size", (3, 224, 224))[-1])


def _fixed_size(model: Any) -> bool:
    return bool(model.pretrained_cfg.get("fixed_input_size"))


def _resized(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's own filter fits position embeddings and the like to another image size."""
    fit = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return fit(dict(state), model) if fit and _fixed_size(model) else state
