"""Cross-entropy against PyTorch's own, a formula written out, and numerical gradients."""

from __future__ import annotations

import math

import pytest
import torch

from fieldmark.losses.cross_entropy import CrossEntropy, cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("classes", [2, 7])
def test_equals_pytorch(smoothing: float, classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(16, classes, generator=generator) * 5
    labels = torch.randint(classes, (16,), generator=generator)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, labels, smoothing), expected)
    torch.testing.assert_close(CrossEntropy(smoothing)(logits, labels), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_soft_targets_equal_pytorch(smoothing: float, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 5, generator=generator) * 3
    targets = torch.randn(16, 5, generator=generator).softmax(1)
    weight = torch.rand(5, generator=generator) + 0.5 if weighted else None
    expected = torch.nn.functional.cross_entropy(logits, targets, weight, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, targets, smoothing, weight), expected)
    torch.testing.assert_close(CrossEntropy(smoothing, weight)(logits, targets), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_of_hard_targets(smoothing: float) -> None:
    """PyTorch's sum; divided by the photos, not by their weights, so that batches can be halved."""
    generator = torch.Generator().manual_seed(1)
    logits, labels = (
        torch.randn(8, 3, generator=generator),
        torch.randint(3, (8,), generator=generator),
    )
    weight = torch.tensor([0.2, 1.0, 3.0])
    whole = cross_entropy(logits, labels, smoothing, weight)
    expected = torch.nn.functional.cross_entropy(
        logits, labels, weight, label_smoothing=smoothing, reduction="sum"
    )
    torch.testing.assert_close(whole, expected / 8)
    halves = [cross_entropy(logits[i::2], labels[i::2], smoothing, weight) for i in (0, 1)]
    torch.testing.assert_close(whole, sum(halves) / 2)
    one_hot = torch.nn.functional.one_hot(labels, 3).float()
    torch.testing.assert_close(whole, cross_entropy(logits, one_hot, smoothing, weight))


def test_by_hand() -> None:
    """softmax(0, ln 3) = 1/4, 3/4; with e = 0.2 the target of class 1 is 0.9, of class 0 it is 0.1."""
    logits = torch.tensor([[0.0, math.log(3)]])
    value = cross_entropy(logits, torch.tensor([1]), 0.2)
    assert value.item() == pytest.approx(-(0.1 * math.log(0.25) + 0.9 * math.log(0.75)), abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("soft", [False, True])
def test_gradient(smoothing: float, soft: bool) -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.randn(4, 3, dtype=torch.float64).softmax(1) if soft else torch.tensor([0, 2, 1, 1])
    weight = torch.tensor([0.5, 1.0, 2.0]) if soft else None
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, labels, smoothing, weight), logits)


def test_sure_and_wrong_stays_finite() -> None:
    assert cross_entropy(torch.tensor([[1e4, -1e4]]), torch.tensor([1])).isfinite()


def test_wrong_shapes_and_shares_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[B, C\]"):
        cross_entropy(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\[B, C\]"):
        cross_entropy(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="share"):
        cross_entropy(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), 1.0)
    with pytest.raises(ValueError, match="weight"):
        cross_entropy(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), weight=torch.ones(3))
