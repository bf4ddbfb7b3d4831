"""The cross-entropy head against scikit-learn's logistic regression."""

from __future__ import annotations

import numpy as np

from fieldmark.train.heads.head import Scaling, Subspace, choose, fit_head
from fieldmark.train.heads.softmax_head import _fit, choose_softmax


def problem(n: int = 150, d: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    dice = np.random.default_rng(0)
    y = np.arange(n) % 3
    z = (dice.normal(size=(3, d))[y] + dice.normal(size=(n, d)) * 1.5).astype(np.float32)
    return z, y, dice.permutation(np.arange(n) % 5)


def test_is_logistic_regression() -> None:
    import torch
    from sklearn.linear_model import LogisticRegression

    z, y, _ = problem()
    decay = 1e-2
    weights, bias = _fit(torch.from_numpy(z), torch.from_numpy(y), 3, decay, 0.0)
    # scikit-learn sums the loss over photos: C = 1 / (decay n).
    reference = LogisticRegression(C=1 / (decay * len(y)), tol=1e-8, max_iter=2000).fit(z, y)
    mine = torch.softmax(torch.from_numpy(z) @ weights + bias, 1).numpy()
    np.testing.assert_allclose(mine, reference.predict_proba(z), atol=2e-3)


def test_head_says_what_its_solution_says() -> None:
    z, y, folds = problem()
    scaling = Scaling.fit(z, [z.shape[1]])
    space = Subspace.fit(z, scaling, y)
    choice = choose_softmax(space, y, 3, folds, 0.1)
    assert choice.solution is not None and choice.bias is not None
    head = fit_head(z, space, y, 3, choice)
    np.testing.assert_allclose(head.logits(z), space.coordinates @ choice.solution + choice.bias, atol=1e-3)
    ridge = choose(space, y, 3, folds)
    assert abs(choice.accuracy - ridge.accuracy) < 0.1 and choice.accuracy > 0.6


def test_out_of_fold_never_saw_the_fold() -> None:
    """Labels that carry nothing cannot be predicted out of fold, though the head can learn them by heart."""
    dice = np.random.default_rng(1)
    z = dice.normal(size=(120, 300)).astype(np.float32)
    y = dice.permutation(np.arange(120) % 3)
    space = Subspace.fit(z, Scaling.fit(z, [300]), y)
    choice = choose_softmax(space, y, 3, np.arange(120) % 5, 0.0)
    head = fit_head(z, space, y, 3, choice)
    assert (head.logits(z).argmax(1) == y).mean() > 0.95
    assert choice.accuracy < 0.55
