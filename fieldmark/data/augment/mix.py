"""Mixup and cutmix: photos of a batch mixed with each other, and their labels likewise."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from fieldmark.data.augment.settings import Augment


def mix(
    images: Tensor, targets: Tensor, classes: int, settings: Augment, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Images [B,3,H,W] and targets ([B] class numbers or [B,C] shares) -> images and soft targets [B,C].

    Each photo is mixed with its neighbour in the batch, so batches must be in random order. The share is
    drawn by (seed, step) alone; torch's own random state stays as it was. With mixup and cutmix both off,
    the images come back untouched. Raises ValueError for targets that are not [B] or [B, classes].
    """
    if targets.shape not in {(len(images),), (len(images), classes)}:
        raise ValueError(
            f"targets {tuple(targets.shape)} are neither [{len(images)}] nor [{len(images)}, {classes}]"
        )
    soft = functional.one_hot(targets, classes).float() if targets.ndim == 1 else targets.float()
    if not settings.mixes:
        return images, soft
    name = hashlib.blake2b(f"mix\0{seed}\0{step}".encode(), digest_size=8).digest()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would seed the GPUs' generators too, which are not forked.
        torch.default_generator.manual_seed(int.from_bytes(name, "big") >> 1)
        both = settings.mixup > 0 and settings.cutmix > 0
        cut = bool(torch.rand(()) < 0.5) if both else settings.cutmix > 0
        transform = v2.CutMix(alpha=settings.cutmix) if cut else v2.MixUp(alpha=settings.mixup)
        mixed, soft = transform(images, soft)
    if images.is_contiguous(memory_format=torch.channels_last):
        mixed = mixed.contiguous(memory_format=torch.channels_last)
    return mixed, soft
