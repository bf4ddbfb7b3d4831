"""Mixup and cutmix: by hand, the same for the same seed and step, targets as shares."""

from __future__ import annotations

import pytest
import torch
from views import NONE, but

from fieldmark.data.augment.mix import mix

# -- mixing


def batch(count: int = 6, side: int = 12) -> torch.Tensor:
    """Photo n is n everywhere."""
    return torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 3, side, side).clone()


def test_mixup_by_hand():
    images, labels = batch(), torch.tensor([0, 1, 2, 3, 0, 1])
    mixed, soft = mix(images, labels, 4, but(mixup=0.5), seed=1, step=2)
    onehot = torch.eye(4)[labels]
    share = float(mixed[1, 0, 0, 0])  # photo 1 beside photo 0: share * 1 + (1 - share) * 0
    assert 0 < share < 1
    before = [5, 0, 1, 2, 3, 4]
    torch.testing.assert_close(mixed, share * images + (1 - share) * images[before])
    torch.testing.assert_close(soft, share * onehot + (1 - share) * onehot[before])


def test_cutmix_by_hand():
    images, labels = batch(), torch.tensor([0, 1, 2, 3, 0, 1])
    before = [5, 0, 1, 2, 3, 4]
    onehot = torch.eye(4)[labels]
    areas = []
    for step in range(20):
        mixed, soft = mix(images, labels, 4, but(cutmix=1.0), seed=0, step=step)
        cut = mixed[1, 0] == 0
        areas.append(float(cut.float().mean()))
        y, x = torch.nonzero(cut, as_tuple=True)
        if len(y):
            assert bool(cut[y.min() : y.max() + 1, x.min() : x.max() + 1].all())  # a rectangle
        torch.testing.assert_close(mixed, torch.where(cut, images[before], images))
        torch.testing.assert_close(soft, (1 - areas[-1]) * onehot + areas[-1] * onehot[before])
    assert min(areas) < 0.1 and max(areas) > 0.4


def test_mix_is_a_function_of_seed_and_step():
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    both = but(mixup=0.4, cutmix=1.0)

    def share(seed: int, step: int) -> float:
        return float(mix(images, labels, 4, both, seed, step)[1][0, 0])

    assert share(0, 7) == share(0, 7)
    assert len({share(seed, step) for seed in range(3) for step in range(5)}) > 12
    kinds = set()
    for step in range(12):  # of both, each batch gets one
        mixed, _ = mix(images, labels, 4, both, 0, step)
        kinds.add(bool((mixed == images).any()))
    assert kinds == {True, False}


def test_mix_off_soft_targets_and_memory_format():
    images = torch.rand(4, 3, 8, 8).to(memory_format=torch.channels_last)
    same, soft = mix(images, torch.tensor([1, 0, 1, 2]), 3, NONE, 0, 0)
    assert same is images and soft.tolist() == torch.eye(3)[[1, 0, 1, 2]].tolist()
    given = torch.full((4, 3), 1 / 3)
    for settings in (but(mixup=1.0), but(cutmix=1.0)):
        mixed, soft = mix(images, given, 3, settings, 0, 0)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(soft, given)
        torch.testing.assert_close(given, torch.full((4, 3), 1 / 3))
    with pytest.raises(ValueError, match=r"\[4\] nor \[4, 3\]"):
        mix(images, torch.zeros(4, 2), 3, NONE, 0, 0)
