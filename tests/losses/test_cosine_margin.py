"""The large-margin cosine loss against a formula written out, and numerical gradients."""

from __future__ import annotations

import math

import pytest
import torch

from fieldmark.losses.cosine_margin import CosineMargin, cosine_margin

LABELS = torch.tensor([0, 2, 1, 2])


def problem(requires_grad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [4, 5] and directions [3, 5]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    weight = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    return x.requires_grad_(requires_grad), weight.requires_grad_(requires_grad)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(v * w for v, w in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


@pytest.mark.parametrize(("margin", "scale"), [(0.35, 64.0), (0.0, 1.0), (0.1, 8.0)])
def test_by_hand(margin: float, scale: float) -> None:
    x, weight = problem()
    total = 0.0
    for row, label in zip(x.tolist(), LABELS.tolist(), strict=True):
        z = [scale * (cosine(row, w) - margin * (c == label)) for c, w in enumerate(weight.tolist())]
        total += math.log(sum(math.exp(v) for v in z)) - z[label]
    assert cosine_margin(x, LABELS, weight, margin, scale).item() == pytest.approx(total / 4)


def test_gradient() -> None:
    assert torch.autograd.gradcheck(
        lambda x, w: cosine_margin(x, LABELS, w, 0.2, 4.0), problem(requires_grad=True)
    )


def test_the_module_learns_its_directions() -> None:
    x, _ = problem()
    torch.manual_seed(0)
    loss = CosineMargin(3, 5).double()
    assert [name for name, _ in loss.named_parameters()] == ["weight"]
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    first = loss(x, LABELS)
    torch.testing.assert_close(first, cosine_margin(x, LABELS, loss.weight))
    for _ in range(30):
        optimizer.zero_grad()
        loss(x, LABELS).backward()
        optimizer.step()
    assert loss(x, LABELS) < first / 2


def test_the_function_draws_nothing_at_random() -> None:
    x, weight = problem()
    before = torch.random.get_rng_state()
    cosine_margin(x, LABELS, weight)
    assert torch.equal(before, torch.random.get_rng_state())


def test_no_photos_give_a_gradient_of_zeros() -> None:
    x, weight = problem(requires_grad=True)
    value = cosine_margin(x[:0], LABELS[:0], weight)
    value.backward()
    assert value.item() == 0
    assert weight.grad is not None and not weight.grad.any()
