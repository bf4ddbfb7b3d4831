"""Choosing by folds: the arithmetic, the folds, and what cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from fieldmark.methods.cnn import Options
from fieldmark.runtime.errors import FieldmarkError, UsageError
from fieldmark.train.textbook.folds import choose, product

Y = np.repeat(["a", "b", "c"], 20)


def test_means_and_spreads_are_those_of_the_folds():
    seen: list[tuple[float, tuple[int, ...]]] = []

    def score(options: float, train: np.ndarray, val: np.ndarray) -> float:
        seen.append((options, tuple(val.tolist())))
        assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(60))
        return options + val.sum() / 1000

    done: list[tuple[int, int]] = []
    choice = choose([0.1, 0.5, 0.3, 0.5], score, Y, folds=4, seed=3, progress=lambda *now: done.append(now))
    assert choice.best == 0.5 and [row.options for row in choice.rows] == [0.5, 0.3, 0.1]
    folds = [np.array(val) for options, val in seen if options == 0.1]
    assert len(folds) == 4 and all(np.array_equal(np.unique(Y[val]), ["a", "b", "c"]) for val in folds)
    scores = [0.5 + val.sum() / 1000 for val in folds]
    mean = sum(scores) / 4
    assert choice.rows[0].mean == pytest.approx(mean)
    assert choice.rows[0].spread == pytest.approx((sum((s - mean) ** 2 for s in scores) / 3) ** 0.5)
    assert choice.table()[0] == {
        "options": 0.5,
        "mean": choice.rows[0].mean,
        "spread": choice.rows[0].spread,
        "scores": list(choice.rows[0].scores),
    }
    assert done[-1] == (12, 12) and len(done) == 12
    assert {val for options, val in seen if options == 0.1} == {
        val for options, val in seen if options == 0.3
    }


def test_groups_stay_whole_and_the_seed_deals():
    groups = np.arange(60) // 4
    vals: list[np.ndarray] = []
    for seed in (0, 0, 1):
        choose([1], lambda _, train, val: vals.append(val) or 0.0, Y, groups, folds=3, seed=seed)  # type: ignore[func-returns-value]
    assert all(set(groups[val]).isdisjoint(groups[np.setdiff1d(np.arange(60), val)]) for val in vals)
    assert all(np.array_equal(a, b) for a, b in zip(vals[:3], vals[3:6], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(vals[:3], vals[6:], strict=True))


def test_what_the_folds_cannot_tell_apart():
    noise = iter([0.90, 0.89, 0.5, 0.80, 0.82, 0.4, 0.85, 0.83, 0.3])
    choice = choose(["x", "y", "z"], lambda *_: next(noise), Y, folds=3)
    assert choice.best == "x" and choice.close == ("x", "y")


def test_a_training_that_failed_is_never_chosen():
    choice = choose([2.0, 1.0], lambda o, *_: float("nan") if o == 2 else o, Y, folds=2)
    assert choice.best == 1.0 and np.isnan(choice.rows[1].mean) and choice.close == (1.0,)
    with pytest.raises(FieldmarkError, match="none of the candidates"):
        choose([1.0], lambda *_: float("nan"), Y, folds=2)


def test_refusals():
    for grid, labels, folds, words in (
        ([], Y, 2, "empty"),
        ([1], Y, 1, "at least 2"),
        ([1], np.array(["a", "b"]), 3, "do not fill 3"),
    ):
        with pytest.raises(UsageError, match=words):
            choose(grid, lambda *_: 1.0, labels, folds=folds)


def test_product():
    made = list(product(Options(), activation=["relu", "tanh"], stages=["8", "8 16@5"]))
    assert [(one.activation, one.compact) for one in made] == [
        ("relu", "8@3"),
        ("relu", "8@3 16@5"),
        ("tanh", "8@3"),
        ("tanh", "8@3 16@5"),
    ]
    assert made[0].hidden == Options().hidden
    with pytest.raises(UsageError, match="no such options"):
        list(product(Options(), dropout=[2]))
