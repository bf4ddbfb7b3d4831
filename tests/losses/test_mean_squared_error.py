"""The mean squared error against PyTorch's, a formula written out, and numerical gradients."""

from __future__ import annotations

import pytest
import torch

from fieldmark.losses.mean_squared_error import MeanSquaredError, mean_squared_error


def test_equals_pytorch() -> None:
    """PyTorch's is a mean over classes too."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 5, generator=generator) * 3, torch.arange(9) % 5
    one_hot = torch.nn.functional.one_hot(labels, 5).float()
    expected = 5 * torch.nn.functional.mse_loss(logits.softmax(1), one_hot)
    torch.testing.assert_close(mean_squared_error(logits, labels), expected)
    torch.testing.assert_close(MeanSquaredError()(logits, one_hot), expected)


def test_by_hand() -> None:
    """Two classes at 1/2 each; smoothing 0.2 makes the target 0.9 and 0.1; the photo of class 1 weighs 3."""
    logits, labels, weight = torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([1.0, 3.0])
    error = 2 * 0.4**2
    weights = (0.9 * 1 + 0.1 * 3) + (0.1 * 1 + 0.9 * 3)
    value = mean_squared_error(logits, labels, 0.2, weight)
    assert value.item() == pytest.approx(error * weights / 2)
    assert MeanSquaredError(0.2, weight)(logits, labels).item() == pytest.approx(value.item())


def test_the_worst_is_2() -> None:
    assert mean_squared_error(torch.tensor([[1e4, -1e4]]), torch.tensor([1])).item() == pytest.approx(2)


@pytest.mark.parametrize("soft", [False, True])
def test_gradient(soft: bool) -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(4, 3, dtype=torch.float64).softmax(1) if soft else torch.tensor([0, 2, 1, 1])
    weight = torch.tensor([0.5, 1.0, 2.0])
    assert torch.autograd.gradcheck(lambda z: mean_squared_error(z, targets, 0.1, weight), logits)
