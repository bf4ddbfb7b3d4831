"""The centre loss and the way its centres go, against loops over the photos."""

from __future__ import annotations

import pytest
import torch

from fieldmark.losses.center import Center, center, moved

LABELS = torch.tensor([0, 2, 0, 2, 2])


def problem(requires_grad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [5, 4] and centres [4, 4] (classes 1 and 3 have no photo)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    centers = torch.randn(4, 4, dtype=torch.float64, generator=generator)
    return x.requires_grad_(requires_grad), centers.requires_grad_(requires_grad)


def test_by_hand() -> None:
    x, centers = problem()
    total = 0.0
    for row, label in zip(x.tolist(), LABELS.tolist(), strict=True):
        total += sum((a - b) ** 2 for a, b in zip(row, centers[label].tolist(), strict=True)) / 2
    assert center(x, LABELS, centers).item() == pytest.approx(total / 5)
    assert center(x[:0], LABELS[:0], centers).item() == 0


def test_gradient() -> None:
    assert torch.autograd.gradcheck(lambda x, c: center(x, LABELS, c), problem(requires_grad=True))


def expected_centers(
    x: torch.Tensor, labels: torch.Tensor, centers: torch.Tensor, rate: float
) -> torch.Tensor:
    after = centers.clone()
    for j in range(len(centers)):
        own = [row for row, label in zip(x, labels.tolist(), strict=True) if label == j]
        change = sum((centers[j] - row for row in own), torch.zeros_like(centers[j])) / (1 + len(own))
        after[j] -= rate * change
    return after


def test_centers_follow_as_in_the_paper() -> None:
    x, centers = problem()
    torch.testing.assert_close(moved(centers, x, LABELS, 0.3), expected_centers(x, LABELS, centers, 0.3))


def test_rows_that_are_not_finite_move_nothing() -> None:
    x, centers = problem()
    x[1, 0], x[3, 2] = float("nan"), float("inf")
    usable = torch.tensor([0, 2, 4])
    torch.testing.assert_close(
        moved(centers, x, LABELS), expected_centers(x[usable], LABELS[usable], centers, 0.5)
    )


def test_all_processes_keep_the_same_centers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with parts of the batch, one after the other: what the other adds is put in by hand."""
    x, centers = problem()
    sums: list[torch.Tensor] = []
    other: list[torch.Tensor] = []

    def all_reduce(tensor: torch.Tensor) -> None:
        sums.append(tensor.clone())
        tensor += other[0] if other else 0

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    moved(centers, x[3:], LABELS[3:])
    moved(centers, x[:0], LABELS[:0])  # a process without a usable photo takes part too
    assert len(sums) == 2
    other.append(sums[0])
    torch.testing.assert_close(moved(centers, x[:3], LABELS[:3]), expected_centers(x, LABELS, centers, 0.5))


def test_the_module_moves_its_centers_in_training_only() -> None:
    x, _ = problem()
    loss = Center(4, 4).double()
    first = loss(x, LABELS)
    assert first.item() == pytest.approx(x.square().sum().item() / 10)
    after = loss.centers.clone()
    torch.testing.assert_close(after, expected_centers(x, LABELS, torch.zeros(4, 4).double(), 0.5))
    assert loss.eval()(x, LABELS) < first
    torch.testing.assert_close(loss.centers, after)
    assert set(loss.state_dict()) == {"centers"}
    for _ in range(50):
        loss.train()(x, LABELS)
    torch.testing.assert_close(loss.centers[0], x[[0, 2]].mean(0), rtol=1e-6, atol=1e-6)


def test_the_loss_looks_at_the_centers_before_they_move() -> None:
    x, _ = problem(requires_grad=True)
    Center(4, 4).double()(x, LABELS).backward()
    torch.testing.assert_close(x.grad, x.detach() / 5)
