"""Classes added and removed by moments alone: the arithmetic of `fieldmark.train.bundle.classes`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fieldmark.train.bundle import classes
from fieldmark.train.bundle.classes import Moments
from fieldmark.train.heads.head import Choice, Scaling, Subspace, fit_head


def learned(n: int = 120, d: int = 300, n_classes: int = 5, ridge: float = 2.0) -> tuple[Any, np.ndarray]:
    """What training found on clustered descriptors, and those of photos of one class more."""
    dice = np.random.default_rng(0)
    centres = dice.normal(size=(n_classes + 1, d))
    y = np.arange(n) % n_classes
    z = (2 + centres[y] + dice.normal(size=(n, d))).astype(np.float32)
    new = (2 + centres[-1] + dice.normal(size=(25, d))).astype(np.float32)
    known = SimpleNamespace(
        z=z,
        y=y,
        space=Subspace.fit(z, Scaling.fit(z, [d]), y),
        squared=Choice(ridge, 0.0, np.zeros(1), 0.0, 1.0, np.zeros((1, 1))),
    )
    trained = SimpleNamespace(
        known=known,
        classes=[str(i) for i in range(n_classes)],
        settings=SimpleNamespace(seed=0, loss="squared_error"),
    )
    return trained, new


@pytest.fixture
def honest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coordinates as they are, without the correction for new photos."""
    monkeypatch.setattr(classes, "optimism", lambda z, space, k, seed: np.ones(k))


def logits(moments: Moments, z: np.ndarray) -> np.ndarray:
    weights, bias = moments.solve()
    return z @ moments.basis.astype(np.float32) @ weights + bias


def coordinates(moments: Moments, z: np.ndarray) -> np.ndarray:
    return z @ moments.basis.astype(np.float32) * moments.step + moments.offset


@pytest.mark.usefixtures("honest")
def test_moments_alone_give_the_trained_head() -> None:
    trained, _ = learned()
    full = fit_head(trained.known.z, trained.known.space, trained.known.y, 5, trained.known.squared)
    mine = logits(Moments.gather(trained), trained.known.z)
    np.testing.assert_allclose(mine, full.logits(trained.known.z), atol=0.03)  # eight bits a direction


@pytest.mark.usefixtures("honest")
def test_one_class_more_is_ridge_regression_beside_the_others() -> None:
    from sklearn.linear_model import Ridge

    trained, new = learned()
    moments = Moments.gather(trained)
    more = moments.add(new)
    k = moments.basis.shape[1]
    c = np.concatenate([trained.known.space.coordinates[:, :k], coordinates(moments, new)]).astype(np.float64)
    targets = np.eye(6)[np.append(trained.known.y, [5] * len(new))]
    expected = Ridge(trained.known.squared.ridge).fit(c, targets)
    np.testing.assert_allclose(logits(more, new), expected.predict(coordinates(moments, new)), atol=1e-3)
    assert (logits(more, new).argmax(1) == 5).all()
    assert (logits(more, trained.known.z).argmax(1) == trained.known.y).mean() > 0.95
    assert more.sums[:, -1].tolist() == [24] * 5 + [25], "photos of each class"


def test_the_order_does_not_matter() -> None:
    trained, new = learned()
    moments = Moments.gather(trained)
    a, b = new[:10], new[10:] - 3
    one, other = moments.add(a).add(b), moments.add(b).add(a)
    np.testing.assert_allclose(one.moment, other.moment, atol=1e-9)
    swapped = logits(other, trained.known.z)[:, [0, 1, 2, 3, 4, 6, 5]]
    np.testing.assert_allclose(logits(one, trained.known.z), swapped, atol=1e-6)


def test_removing_takes_its_own_logit_only() -> None:
    trained, new = learned()
    more = Moments.gather(trained).add(new)
    less = more.remove(2)
    np.testing.assert_allclose(logits(less, new), np.delete(logits(more, new), 2, axis=1), atol=1e-6)


def test_new_photos_fall_short_of_those_that_made_the_directions() -> None:
    """The correction is near what new photos of the same kind really show, direction by direction."""
    dice = np.random.default_rng(1)
    z = dice.normal(size=(600, 400)).astype(np.float32) * np.linspace(3, 0.3, 400).astype(np.float32)
    made, fresh = z[:300], z[300:]
    space = Subspace.fit(made, Scaling.fit(made, [400]), np.zeros(300, int))
    k = 200
    factor = classes.optimism(made, space, k, 0)
    basis = space.directions(made, np.eye(len(space.spectrum), k, dtype=np.float32))
    true = (((fresh - space.scaling.mean) @ basis) ** 2).mean(0) / (space.coordinates[:, :k] ** 2).mean(0)
    assert factor.shape == (k,) and (factor > 0).all() and (factor <= 1).all()
    for block in (slice(0, 50), slice(50, 100), slice(100, 150)):
        assert (factor[block] ** 2).mean() == pytest.approx(true[block].mean(), rel=0.25)
    few = made[: classes.FEWEST - 1]
    assert (
        classes.optimism(few, Subspace.fit(few, Scaling.fit(few, [400]), np.zeros(39, int)), 9, 0) == 1
    ).all()
