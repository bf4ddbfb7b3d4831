"""The losses of pairs and triplets against loops over the photos, and numerical gradients."""

from __future__ import annotations

import pytest
import torch

from fieldmark.losses.contrastive import Contrastive, contrastive
from fieldmark.losses.triplet import Triplet, triplet

LABELS = torch.tensor([0, 1, 0, 2, 1, 1, 3, 0])


def embeddings(seed: int = 0, requires_grad: bool = False) -> torch.Tensor:
    x = torch.randn(len(LABELS), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.requires_grad_(requires_grad)


def distances(x: torch.Tensor) -> list[list[float]]:
    unit = [[v / sum(w * w for w in row) ** 0.5 for v in row] for row in x.tolist()]
    return [[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) ** 0.5 for q in unit] for p in unit]


@pytest.mark.parametrize("margin", [0.3, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_contrastive(seed: int, margin: float) -> None:
    x, y = embeddings(seed), LABELS.tolist()
    near: list[float] = []
    far: list[float] = []
    for i, row in enumerate(distances(x)):
        for j, d in enumerate(row):
            if i != j:
                (near if y[i] == y[j] else far).append(d if y[i] == y[j] else max(0.0, margin - d))
    active = [v for v in far if v > 0]
    expected = sum(near) / len(near) + (sum(active) / len(active) if active else 0)
    assert contrastive(x, LABELS, margin).item() == pytest.approx(expected)
    assert Contrastive(margin)(x, LABELS).item() == pytest.approx(expected)


@pytest.mark.parametrize("margin", [0.2, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_triplet(seed: int, margin: float) -> None:
    """The photos of the classes 2 and 3 are alone: they are no anchors. Those that are far enough count as 0."""
    x, y = embeddings(seed) + 2.5 * torch.eye(4)[LABELS, :3], LABELS.tolist()
    terms = []
    for i, row in enumerate(distances(x)):
        own = [d for j, d in enumerate(row) if y[j] == y[i] and j != i]
        if own:
            terms.append(max(0.0, margin + max(own) - min(d for j, d in enumerate(row) if y[j] != y[i])))
    assert len(terms) == 6
    assert (0.0 in terms) == (margin == 0.2)
    assert triplet(x, LABELS, margin).item() == pytest.approx(sum(terms) / 6)
    assert Triplet(margin)(x, LABELS).item() == pytest.approx(sum(terms) / 6)


@pytest.mark.parametrize("loss", [contrastive, triplet])
def test_gradient(loss) -> None:  # type: ignore[no-untyped-def]
    assert torch.autograd.gradcheck(lambda x: loss(x, LABELS), embeddings(requires_grad=True))


@pytest.mark.parametrize("loss", [contrastive, triplet])
@pytest.mark.parametrize(
    "labels", [[], [0], [0, 0, 0], [0, 1, 2]], ids=["empty", "one", "one class", "all alone"]
)
def test_batches_that_have_no_pairs_or_no_triplets(loss, labels: list[int]) -> None:  # type: ignore[no-untyped-def]
    x = torch.eye(3)[: len(labels)].requires_grad_()  # sqrt(2) apart: farther than the margin
    value = loss(x, torch.tensor(labels, dtype=torch.long))
    value.backward()
    assert x.grad is not None and x.grad.isfinite().all()
    if loss is triplet or labels != [0, 0, 0]:
        assert value.item() == 0
    else:
        assert value.item() == pytest.approx(2**0.5)


@pytest.mark.parametrize("loss", [contrastive, triplet])
def test_two_equal_photos(loss) -> None:  # type: ignore[no-untyped-def]
    x = torch.ones(4, 3, requires_grad=True)
    loss(x, torch.tensor([0, 0, 1, 1])).backward()
    assert x.grad is not None and x.grad.isfinite().all()
