"""The warm head: a linear model of descriptors, from zero; views that training does not reach."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from fieldmark.data.augment import Augment
from fieldmark.data.loader import Loader, Photos
from fieldmark.losses.combine import build
from fieldmark.methods.descriptor import descriptor_graph
from fieldmark.train.heads import warm
from fieldmark.train.heads.warm import FIRST_EPOCH, descriptors_of_views, warm_head, warm_new


def clouds(n: int = 200, d: int = 6, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(0)
    y = np.arange(n) % classes
    return (dice.normal(size=(classes, d))[y] * 2 + dice.normal(size=(n, d))).astype(np.float16), y


@pytest.mark.parametrize("rank", [None, 4])
def test_the_head_is_a_softmax_regression(rank: int | None) -> None:
    z, y = clouds(1500)
    torch.manual_seed(0)
    full = nn.Linear(rank or 6, 3)
    head: Any = nn.Sequential(nn.Linear(6, rank, bias=False), full) if rank else full
    warm_head(head, [z, z + np.float16(0.01)], y, build("cross_entropy", classes=3, embedding=4), 0)
    p = torch.softmax(head(torch.from_numpy(z.astype(np.float32))), 1).detach().numpy()
    theirs = LogisticRegression(C=1.0, max_iter=500).fit(z.astype(np.float64), y)
    assert (p.argmax(1) == y).mean() >= theirs.score(z, y) - 0.03
    agreed = p.argmax(1) == theirs.predict(z)
    assert agreed.mean() > 0.93


def test_it_starts_from_zero_and_the_seed_decides() -> None:
    z, y = clouds()
    criterion = build("cross_entropy", classes=3, embedding=4)
    heads = []
    for start, seed in ((0, 1), (5, 1), (0, 2)):
        torch.manual_seed(start)
        head = nn.Linear(6, 3)
        warm_head(head, [z, -z], y, criterion, seed)
        heads.append(head.weight.detach())
        assert all(parameter.grad is None for parameter in head.parameters()), "nothing goes on into training"
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize(("photos", "steps"), [(32, 100), (200, 34 * 3), (1500, 12 * 23)])
def test_few_photos_are_seen_more_often(photos: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = clouds(photos)
    criterion, taken = build("cross_entropy", classes=3, embedding=4), []
    real = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *at: taken.append(1) or real(*at))
    warm_head(nn.Linear(6, 3), [z], y, criterion, 0)
    assert len(taken) == steps


def test_it_is_softer_than_a_regression_and_answers_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = clouds()
    heads = []
    for soft in (warm.SOFT, 1.0):
        monkeypatch.setattr(warm, "SOFT", soft)
        heads.append(nn.Linear(6, 3))
        warm_head(heads[-1], [z], y, build("cross_entropy", classes=3, embedding=4), 0)
    ours, regression = (head(torch.from_numpy(z).float()) for head in heads)
    assert torch.allclose(3 * ours, regression, atol=1e-4)


def test_fewer_photos_than_a_batch() -> None:
    z, y = clouds(5)
    head = nn.Linear(6, 3)
    warm_head(head, [z], y, build("cross_entropy", classes=3, embedding=4), 0)
    assert head.weight.isfinite().all() and (head(torch.from_numpy(z).float()).argmax(1).numpy() == y).all()


def test_descriptors_of_views(some: SimpleNamespace) -> None:
    graph = descriptor_graph("test_efficientnet", "isqrt_cov", size=32, pretrained=False)
    photos, told = Photos(some.train[:5]), []
    z = descriptors_of_views(
        graph, photos, Augment(), 2, seed=4, workers=1, progress=lambda *at: told.append(at)
    )
    assert z.shape == (2, 5, sum(graph.widths)) and z.dtype == np.float16 and told[-1] == (10, 10)
    from fieldmark.methods.descriptor import OUTPUT
    from fieldmark.runtime.engine import compile_graph

    engine = compile_graph(graph.path, outputs=[OUTPUT], workers=1)
    loader = Loader(Photos(some.train[:5]), graph.preprocess, Augment(), seed=4)
    for view in range(2):
        (images,) = loader.batches([(np.arange(5), FIRST_EPOCH + view)])
        expected = np.stack([engine.run(one[None].contiguous().numpy(), [OUTPUT])[0][0] for one in images])
        np.testing.assert_allclose(z[view], expected, atol=2e-3)
    assert np.abs(z[0].astype(float) - z[1]).max() > 1e-3, "two views"


def test_losses_of_the_embedding_wait() -> None:
    """A sum with a loss of the embedding warms the head up as its losses of the logits alone would."""
    chance = np.random.default_rng(0)
    z, y = chance.normal(size=(12, 4)).astype(np.float16), np.arange(12) % 3
    heads = []
    for spec in ("focal", "focal+0.1*triplet+0.01*center"):
        heads.append(nn.Linear(4, 3))
        warm_head(heads[-1], [z], y, build(spec, classes=3, embedding=4), 0)
    torch.testing.assert_close(heads[0].weight, heads[1].weight)


class New(nn.Module):
    """A method whose layers are new: a map through batch norm and dropout, behind a frozen backbone."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8))
        self.local = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(16, classes)

    def describe(self, x: torch.Tensor) -> torch.Tensor:
        return self.local(self.backbone(x)).mean((2, 3))


def test_new_layers_begin_with_a_head_that_fits_them() -> None:
    """Photos of a coarser group only have no logit; batch norms of new layers learn statistics, frozen ones do not;
    the head is that of what is seen without dropout."""
    z, y = clouds(300)
    x = torch.from_numpy(z.astype(np.float32))[:, :, None, None].expand(-1, -1, 4, 4).contiguous()
    labels = torch.from_numpy(np.append(y, np.full(20, 5)))
    x = torch.cat([x, torch.randn(20, 6, 4, 4, generator=torch.Generator().manual_seed(1)) * 9])
    torch.manual_seed(0)
    learner: Any = New().train()
    learner.backbone.eval()
    kept = [value.clone() for value in learner.backbone.state_dict().values()]
    local = [value.clone() for value in learner.local.parameters()]
    criterion = build("cross_entropy", classes=3, embedding=4)
    warm_new(learner, lambda: zip(x.split(40), labels.split(40), strict=True), criterion, 0)
    assert learner.training and not learner.backbone[1].training, "as it was"
    assert all(map(torch.equal, kept, learner.backbone.state_dict().values()))
    assert all(map(torch.equal, local, learner.local.parameters())), "only the head learns"
    with torch.no_grad():
        seen = learner.local[0](learner.backbone(x))
    torch.testing.assert_close(learner.local[1].running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    assert learner.local[1].momentum == 0.1, "and from now on as ever"
    learner.eval()
    with torch.no_grad():
        right = learner.head(learner.describe(x[:300])).argmax(1) == labels[:300]
    assert right.float().mean() > 0.8
    assert all(parameter.grad is None for parameter in learner.parameters())


@pytest.mark.parametrize("rank", [None, 4])
def test_descriptors_that_are_far_off_and_nearly_alike(rank: int | None) -> None:
    """As if they were of mean 0 and some length: the head says the same of them."""
    z, y = clouds(600)
    far = torch.from_numpy(0.01 * z.astype(np.float32) + 5)
    learner: Any = nn.Module()
    learner.describe = lambda x: x
    full = nn.Linear(rank or 6, 3)
    learner.head = nn.Sequential(nn.Linear(6, rank, bias=False), full) if rank else full
    views = zip(far.split(50), torch.from_numpy(y).split(50), strict=True)
    warm_new(learner, lambda: views, build("cross_entropy", classes=3, embedding=4), 0)
    theirs = LogisticRegression(C=1.0, max_iter=500).fit(z.astype(np.float64), y)
    with torch.no_grad():
        right = learner.head(far).argmax(1).numpy() == y
    assert right.mean() >= theirs.score(z, y) - 0.03
