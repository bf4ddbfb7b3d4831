"""The focal loss against torchvision's (of two classes), a formula written out, and numerical gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from fieldmark.losses.cross_entropy import cross_entropy
from fieldmark.losses.focal import Focal, focal


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [-1.0, 0.25])
def test_of_two_classes_equals_torchvision(gamma: float, alpha: float) -> None:
    """softmax(0, z) is a sigmoid of z; torchvision's alpha weighs class 1, 1 - alpha class 0."""
    generator = torch.Generator().manual_seed(0)
    z, labels = torch.randn(20, generator=generator) * 3, torch.arange(20) % 2
    expected = sigmoid_focal_loss(z, labels.float(), alpha=alpha, gamma=gamma, reduction="mean")
    weight = None if alpha < 0 else torch.tensor([1 - alpha, alpha])
    logits = torch.stack([torch.zeros(20), z], 1)
    torch.testing.assert_close(focal(logits, labels, gamma, weight=weight), expected)
    torch.testing.assert_close(Focal(weight=weight, gamma=gamma)(logits, labels), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_by_hand(smoothing: float) -> None:
    """Every photo and class one by one, with soft targets, smoothing and weights."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 4, generator=generator)
    targets = torch.randn(6, 4, generator=generator).softmax(1)
    weight = [0.5, 1.0, 2.0, 0.1]
    total = 0.0
    for z, q in zip(logits.tolist(), targets.tolist(), strict=True):
        norm = sum(math.exp(v) for v in z)
        for c in range(4):
            p, share = math.exp(z[c]) / norm, (1 - smoothing) * q[c] + smoothing / 4
            total -= weight[c] * share * (1 - p) ** 2 * math.log(p)
    value = focal(logits, targets, 2.0, smoothing, torch.tensor(weight))
    assert value.item() == pytest.approx(total / 6, rel=1e-5)


def test_gamma_0_is_cross_entropy() -> None:
    logits, labels = (
        torch.randn(5, 3, generator=torch.Generator().manual_seed(2)),
        torch.tensor([0, 1, 2, 2, 0]),
    )
    torch.testing.assert_close(focal(logits, labels, 0.0, 0.1), cross_entropy(logits, labels, 0.1))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("soft", [False, True])
def test_gradient(gamma: float, soft: bool) -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(4, 3, dtype=torch.float64).softmax(1) if soft else torch.tensor([0, 2, 1, 1])
    assert torch.autograd.gradcheck(lambda z: focal(z, targets, gamma, 0.1), logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("label", [0, 1])
def test_sure_photos_stay_finite(gamma: float, label: int) -> None:
    """p = 1 in floating point: the derivative of (1 - p)^gamma alone would be infinite for gamma < 1."""
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    value = focal(logits, torch.tensor([label]), gamma)
    value.backward()
    assert logits.grad is not None
    assert value.isfinite() and logits.grad.isfinite().all()


def test_a_negative_gamma_is_refused() -> None:
    with pytest.raises(ValueError, match="gamma"):
        focal(torch.zeros(1, 2), torch.tensor([0]), -1.0)
