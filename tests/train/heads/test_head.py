"""The head against scikit-learn, against refitting without each fold, and against its own approximations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train.heads import head
from fieldmark.train.heads.head import Choice, Head, Scaling, Subspace, choose, fit_head, out_of_fold

Problem = tuple[np.ndarray, np.ndarray, np.ndarray]


def problem(n: int, d: int, classes: int = 3, seed: int = 0, noise: float = 1.0) -> Problem:
    """Descriptors [n, d] around class centres (with a mean far from 0), labels [n], folds [n]."""
    dice = np.random.default_rng(seed)
    y = np.arange(n) % classes
    z = 5 + dice.normal(size=(classes, d))[y] + noise * dice.normal(size=(n, d))
    return z.astype(np.float32), y, dice.permutation(np.arange(n) % 5)


def subspace(z: np.ndarray, y: np.ndarray, parts: list[int] | None = None) -> Subspace:
    return Subspace.fit(z, Scaling.fit(z, parts or [z.shape[1]]), y)


def given(ridge: float, temperature: float = 1.0) -> Choice:
    return Choice(ridge, 0.0, np.zeros(1), 0.0, temperature, np.zeros((1, 1)))


def onehot(y: np.ndarray) -> np.ndarray:
    return np.eye(y.max() + 1, dtype=np.float32)[y]


SHAPES = [(40, 200), (200, 12)]  # more entries than photos, as always in practice; and fewer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ridge", [0.01, 1.0, 30.0])
def test_equals_scikit_learn(shape: tuple[int, int], ridge: float) -> None:
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.linear_model import Ridge

    z, y, _ = problem(*shape)
    space = subspace(z, y)
    mine = fit_head(z, space, y, 3, given(ridge)).logits(z)
    x = space.scaling.rows(z).astype(np.float64)
    t = onehot(y).astype(np.float64)
    primal = Ridge(ridge).fit(x, t).predict(x)  # with an intercept: centred rows and the prior are ours
    dual = KernelRidge(alpha=ridge).fit(x, t - t.mean(0)).predict(x) + t.mean(0)
    np.testing.assert_allclose(mine, primal, atol=2e-3)
    np.testing.assert_allclose(mine, dual, atol=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ridge", [0.05, 2.0])
def test_out_of_fold_is_a_refit_without_the_fold(shape: tuple[int, int], ridge: float) -> None:
    from sklearn.linear_model import Ridge

    z, y, folds = problem(*shape)
    space = subspace(z, y)
    assert (np.bincount(folds).max() <= len(space.spectrum)) == (shape == SHAPES[0]), "one case a branch"
    targets = onehot(y) - onehot(y).mean(0)
    mine = out_of_fold(space.coordinates, space.spectrum, targets, folds, ridge)
    x = space.scaling.rows(z).astype(np.float64)
    for fold in range(5):
        held = folds == fold
        refit = Ridge(ridge).fit(x[~held], targets[~held])
        np.testing.assert_allclose(mine[held], refit.predict(x[held]), atol=2e-3)


def test_out_of_fold_branches_agree_at_the_border() -> None:
    """A fold of as many photos as there are directions may go either way."""
    z, y, _ = problem(60, 12)
    space = subspace(z, y)
    targets = onehot(y) - onehot(y).mean(0)
    folds = (np.arange(60) >= 12).astype(int)  # 12 and 48 photos, rank 12
    one = out_of_fold(space.coordinates, space.spectrum, targets, folds, 0.5)
    x = space.scaling.rows(z).astype(np.float64)
    for held in (folds == 0, folds == 1):
        kept = np.c_[x[~held], np.ones((~held).sum())]
        weights = np.linalg.solve(kept.T @ kept + np.diag([0.5] * 12 + [0]), kept.T @ targets[~held])
        np.testing.assert_allclose(one[held], np.c_[x[held], np.ones(held.sum())] @ weights, atol=2e-3)


def test_coordinates_are_the_gram_matrix() -> None:
    z, y, _ = problem(40, 200)
    space = subspace(z, y)
    x = space.scaling.rows(z)
    np.testing.assert_allclose(space.coordinates @ space.coordinates.T, x @ x.T, atol=1e-3)
    np.testing.assert_allclose(
        space.coordinates.T @ space.coordinates, np.diag(space.spectrum), atol=1e-3 * space.spectrum[0]
    )
    assert (np.diff(space.spectrum) <= 1e-6).all(), "most variance first"


def test_landmarks_come_close_to_all_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many landmarks as the data has directions say nearly the same as all photos do."""
    dice = np.random.default_rng(1)
    y = np.arange(300) % 4
    inner = dice.normal(size=(4, 10))[y] * 2 + dice.normal(size=(300, 10))
    z = (inner @ dice.normal(size=(10, 150)) + 0.05 * dice.normal(size=(300, 150))).astype(np.float32)
    folds = dice.permutation(np.arange(300) % 5)
    exact = subspace(z, y)
    monkeypatch.setattr(head, "LANDMARKS", 80)
    few = subspace(z, y)
    assert len(few.landmarks) == 80 and few.coordinates.shape == (300, len(few.spectrum))
    assert np.bincount(y[few.landmarks]).tolist() == [20] * 4, "landmarks are spread over the classes"
    np.testing.assert_allclose(
        few.coordinates.T @ few.coordinates, np.diag(few.spectrum), atol=2e-3 * few.spectrum[0]
    )
    targets = onehot(y) - onehot(y).mean(0)
    ridge = float(exact.spectrum.sum()) * 1e-4
    one = out_of_fold(exact.coordinates, exact.spectrum, targets, folds, ridge)
    two = out_of_fold(few.coordinates, few.spectrum, targets, folds, ridge)
    assert np.abs(one - two).max() < 0.05
    full, small = (fit_head(z, space, y, 4, given(ridge)) for space in (exact, few))
    assert np.abs(full.logits(z) - small.logits(z)).max() < 0.05
    own = cosines(full.embed(z)), cosines(small.embed(z))
    assert np.abs(own[0] - own[1]).mean() < 0.05


def cosines(embedding: np.ndarray) -> np.ndarray:
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("landmarks", [None, 30])
def test_embedding_is_the_coordinates_whitened_within_classes(
    monkeypatch: pytest.MonkeyPatch, landmarks: int | None
) -> None:
    if landmarks:
        monkeypatch.setattr(head, "LANDMARKS", landmarks)
    monkeypatch.setattr(head, "EMBEDDING", 7)
    z, y, _ = problem(60, 200)
    space = subspace(z, y)
    fitted = fit_head(z, space, y, 3, given(1.0))
    assert fitted.embedding.shape == (200, 7) and fitted.offset.shape == (7,)
    own = space.coordinates[:, :7]
    within = sum(np.cov(own[y == c].T, bias=True) * (y == c).mean() for c in range(3))
    shrunk = within + head.SHRINK * np.trace(within) / 7 * np.eye(7)
    # Whitening is free to rotate: the inner products are what it fixes.
    expected = own @ np.linalg.inv(shrunk) @ own.T
    mine = fitted.embed(z)
    np.testing.assert_allclose(mine @ mine.T, expected, atol=1e-3 * np.abs(expected).max())


def low_rank(monkeypatch: pytest.MonkeyPatch, room: int) -> tuple[Head, Head, Subspace, np.ndarray]:
    z, y, _ = problem(40, 200)
    space = subspace(z, y)
    full = fit_head(z, space, y, 3, given(1.0))
    monkeypatch.setattr(head, "MOST_WEIGHTS", room)
    return full, fit_head(z, space, y, 3, given(1.0)), space, z


def test_low_rank_with_rank_to_spare_is_the_full_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "EMBEDDING", 4)
    z, y, _ = problem(40, 200, noise=0.0)  # three centres: two directions are all there is
    space = subspace(z, y)
    full = fit_head(z, space, y, 3, given(1.0))
    monkeypatch.setattr(head, "MOST_WEIGHTS", 599)  # 200 x 3 weights are one too many: two directions fit
    small = fit_head(z, space, y, 3, given(1.0))
    assert full.down is None and small.down is not None and small.down.shape == (200, 2)
    assert small.weights.shape == (2, 3)
    np.testing.assert_allclose(small.logits(z), full.logits(z), atol=1e-3)
    np.testing.assert_allclose(small.embed(z), full.embed(z), atol=1e-3)


def test_low_rank_is_the_truncated_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    full, small, space, z = low_rank(monkeypatch, 599)
    assert full.down is None and small.down is not None
    rank = small.down.shape[1]
    assert small.down.size + small.weights.size <= 599 < full.weights.size
    y = np.arange(40) % 3
    targets = onehot(y) - onehot(y).mean(0)
    own = space.coordinates[:, :rank]
    expected = (own / (space.spectrum[:rank] + 1.0)) @ (own.T @ targets) + onehot(y).mean(0)
    np.testing.assert_allclose(small.logits(z), expected, atol=2e-3)


def test_each_part_weighs_the_same() -> None:
    dice = np.random.default_rng(0)
    z = np.concatenate([dice.normal(3, 100, (50, 30)), dice.normal(0, 0.01, (50, 7)), np.ones((50, 4))], 1)
    scaling = Scaling.fit(z.astype(np.float32), [30, 7, 4])
    x = scaling.rows(z)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-4)
    for part in (slice(0, 30), slice(30, 37)):
        assert (x[:, part] ** 2).sum(1).mean() == pytest.approx(1, abs=1e-3)
        assert np.ptp(scaling.scale[part]) == 0, "within a part nothing is stretched"
    assert (x[:, 37:] == 0).all(), "a constant part says nothing, and does not explode"
    halved = scaling.weighted((1, 0.5, 1), [30, 7, 4]).rows(z)
    assert (halved[:, 30:37] ** 2).sum(1).mean() == pytest.approx(0.25, abs=1e-3)
    without = scaling.weighted((0, 1, 1), [30, 7, 4]).rows(z)
    assert (without[:, :30] == 0).all() and (without[:, 30:] == x[:, 30:]).all()


def test_variance_of_entries_far_from_zero() -> None:
    """Half-precision entries near 0.05 that vary in the last bits: E[x^2] - E[x]^2 must not lose them."""
    dice = np.random.default_rng(0)
    z = (0.05 + 1e-4 * dice.normal(size=(3000, 20))).astype(np.float16)
    scaling = Scaling.fit(z, [20])
    true = z.astype(np.float64).var(0).sum()
    assert scaling.scale[0] == pytest.approx(1 / np.sqrt(true), rel=1e-2)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_next_to_no_photos(n: int) -> None:
    z, y, _ = problem(n, 50, classes=2)
    space = subspace(z, y)
    choice = choose(space, y, 2, np.arange(n))  # fewer photos than folds: each its own
    fitted = fit_head(z, space, y, 2, choice)
    assert np.isfinite(fitted.logits(z)).all() and np.isfinite(choice.logits).all()
    assert np.isfinite([choice.nll, choice.temperature]).all()
    assert (fitted.logits(z).argmax(1) == y).all()


def test_all_photos_of_a_class_in_one_fold() -> None:
    z, y, _ = problem(30, 50)
    choice = choose(subspace(z, y), y, 3, y)
    assert np.isfinite(choice.logits).all() and 1e-3 <= choice.temperature <= 1e3


def test_a_class_with_one_photo() -> None:
    z, y, folds = problem(31, 100)
    y = np.append(y[:-1], 3)
    z[-1] -= 4
    space = subspace(z, y)
    choice = choose(space, y, 4, folds)
    fitted = fit_head(z, space, y, 4, choice)
    assert np.isfinite(choice.logits).all()
    assert fitted.logits(z)[-1].argmax() == 3, "it is learned from its one photo"
    assert abs(choice.logits[-1, 3]) < 1e-4, "and without it, it does not exist"


def test_a_class_in_one_fold_is_not_known_out_of_fold() -> None:
    """The photos of a fold tell the others nothing, not even through the means."""
    z, _, folds = problem(40, 100, noise=0.3)
    y = np.where(folds == 4, 1, 0)
    z[y == 1] += 3
    choice = choose(subspace(z, y), y, 2, folds)
    assert (choice.logits[y == 1].argmax(1) == 0).all()


def test_duplicates_and_constants() -> None:
    z, y, folds = problem(20, 60)
    doubled, labels = np.concatenate([z, z]), np.concatenate([y, y])
    doubled[:, :10] = 7.0
    space = subspace(doubled, labels)
    assert len(space.spectrum) <= 20
    choice = choose(space, labels, 3, np.concatenate([folds, folds]))
    fitted = fit_head(doubled, space, labels, 3, choice)
    scores = fitted.logits(doubled)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores[:20], scores[20:], atol=1e-5)


def test_photos_that_all_look_the_same() -> None:
    with pytest.raises(FieldmarkError, match="look the same"):
        subspace(np.full((12, 30), 0.3, np.float16), np.array([0] * 8 + [1] * 4))


def test_choice_is_the_best_of_all_and_honest() -> None:
    z, y, folds = problem(120, 100, noise=3.0)  # as many entries as photos: too little ridge is bad
    space = subspace(z, y)
    choice = choose(space, y, 3, folds)
    unit = float(space.spectrum.sum()) / 100
    prior = onehot(y).mean(0)
    losses: dict[float, float] = {}
    for factor in head.REGULARISATIONS:
        logits = (
            out_of_fold(space.coordinates, space.spectrum, onehot(y) - prior, folds, factor * unit) + prior
        )
        grid = np.geomspace(1e-3, 10, 400)
        z_ = logits[None] / grid[:, None, None]
        nll = np.log(np.exp(z_ - z_.max(2, keepdims=True)).sum(2)) + z_.max(2) - z_[:, np.arange(120), y]
        losses[factor * unit] = nll.mean(1).min()
    assert choice.nll == pytest.approx(min(losses.values()), rel=0.02)
    assert losses[choice.ridge] == pytest.approx(min(losses.values()), rel=0.02)
    assert max(losses.values()) > 1.05 * min(losses.values()), "there was something to choose"
    assert choice.accuracy == pytest.approx((choice.logits.argmax(1) == y).mean())
    # Labels that mean nothing: out-of-fold accuracy is chance, however well all photos can be fitted.
    nonsense = np.random.default_rng(5).permutation(y)
    assert choose(space, nonsense, 3, folds).accuracy < 0.55
    assert choose(space, nonsense, 3, folds).nll > 0.95 * np.log(3)


def test_the_same_twice() -> None:
    z, y, folds = problem(60, 200)
    made = []
    for _ in range(2):
        space = subspace(z, y)
        made.append(fit_head(z, space, y, 3, choose(space, y, 3, folds)))
    assert made[0].weights.tobytes() == made[1].weights.tobytes()
    assert made[0].bias.tobytes() == made[1].bias.tobytes()
    assert made[0].embedding.tobytes() == made[1].embedding.tobytes()


@pytest.mark.parametrize("landmarks", [None, 40])
def test_descriptors_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, landmarks: int | None) -> None:
    """A memory map gives the same head as the array, whatever the block size."""
    if landmarks:
        monkeypatch.setattr(head, "LANDMARKS", landmarks)
    z, y, _ = problem(70, 100)
    z = z.astype(np.float16)
    mapped = np.memmap(tmp_path / "z", np.float16, "w+", shape=z.shape)
    mapped[:] = z
    one = fit_head(z, subspace(z, y), y, 3, given(1.0))
    monkeypatch.setattr(head, "ROWS", 16)
    two = fit_head(mapped, subspace(mapped, y), y, 3, given(1.0))
    np.testing.assert_allclose(one.weights, two.weights, atol=1e-4)
    np.testing.assert_allclose(one.logits(z), two.logits(mapped), atol=1e-3)
    assert isinstance(two.weights, np.ndarray) and not isinstance(two.weights, np.memmap)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_embedding_of_classes_with_a_photo_each(scale: float) -> None:
    """No spread within classes: nothing is divided by it, and half precision holds the graph's projection."""
    from fieldmark.train.bundle.assemble import head_tensors

    dice = np.random.default_rng(0)
    z = (scale * dice.normal(size=(6, 80))).astype(np.float32)
    y = np.arange(6)
    fitted = fit_head(z, subspace(z, y), y, 6, given(1.0))
    tensors = head_tensors(fitted)
    weight, bias = tensors["projection.weight"], tensors["projection.bias"]
    assert weight.dtype == np.float16 and np.isfinite(weight).all() and np.isfinite(bias).all()
    assert np.abs(weight).max() == 1
    small = z @ weight.astype(np.float32) + bias
    np.testing.assert_allclose(cosines(small), cosines(fitted.embed(z)), atol=5e-3)
