from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.runtime import decision, metrics

quick = settings(deadline=None, max_examples=50)
seeds = st.integers(0, 2**32 - 1)


def sample(rng, n, c, temperature):
    """Logits whose true temperature is known: labels are drawn from softmax(logits / temperature)."""
    logits = rng.normal(size=(n, c)) * 3 * temperature
    p = decision.softmax(logits, temperature)
    labels = (p.cumsum(1) < rng.random((n, 1))).sum(1)
    return logits, np.minimum(labels, c - 1)


@quick
@given(seeds, st.floats(0.01, 100), st.sampled_from([1.0, 500.0]))
def test_softmax(seed, temperature, sharp):
    from scipy.special import softmax

    logits = np.random.default_rng(seed).normal(size=(4, 6)) * sharp
    assert decision.softmax(logits, temperature) == pytest.approx(softmax(logits / temperature, axis=1))


def test_softmax_keeps_its_input_and_type():
    logits = np.ones((2, 3), np.float32)
    assert decision.softmax(logits, 2.0).dtype == np.float32 and (logits == 1).all()
    assert decision.softmax(np.array([1, 1])).tolist() == [0.5, 0.5]


@quick
@given(seeds, st.floats(0.02, 50), st.integers(2, 20), st.integers(30, 300))
def test_temperature_is_the_minimum_that_scipy_finds(seed, true, c, n):
    from scipy.optimize import minimize_scalar

    logits, labels = sample(np.random.default_rng(seed), n, c, true)

    def loss(log_t):
        return metrics.nll(decision.softmax(logits, np.exp(log_t)), labels)

    found = decision.fit_temperature(logits, labels, prior=0)
    middle = np.log(true)
    best = minimize_scalar(loss, bounds=(middle - 3, middle + 3), method="bounded", options={"xatol": 1e-6})
    assert loss(np.log(found)) <= best.fun + 1e-9


@pytest.mark.parametrize("true", [0.05, 1.0, 30.0])
def test_temperature_recovers_the_true_one(true):
    logits, labels = sample(np.random.default_rng(0), 5000, 10, true)
    assert decision.fit_temperature(logits, labels) == pytest.approx(true, rel=0.05)


def test_a_head_without_mistakes_stays_humble():
    """Logits in steps of 1 and no mistake: likelihood alone would answer with certainty."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    logits = np.eye(3)[labels] + rng.normal(size=(200, 3)) * 0.1
    assert decision.fit_temperature(logits, labels, prior=0) < 0.02
    shy = decision.softmax(logits, decision.fit_temperature(logits, labels)).max(1).mean()
    assert 0.98 < shy < 0.9995


@pytest.mark.parametrize("logits", [np.zeros((5, 3)), np.full((5, 3), 7.0)])
def test_temperature_of_logits_that_say_nothing_is_finite(logits):
    assert decision.COLDEST <= decision.fit_temperature(logits, [0, 1, 2, 0, 1]) <= decision.HOTTEST


def test_temperature_of_logits_that_are_always_wrong_is_hot():
    assert decision.fit_temperature(np.eye(3) * 9, [1, 2, 0]) > 100


def test_temperature_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="are not"):
        decision.fit_temperature(np.zeros((0, 3)), [])


def test_top_is_sorted_and_breaks_ties_as_argmax():
    p = np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]], np.float32)
    answer = decision.top(p, ["a", "b", "c"], 2)
    assert [[name for name, _ in row] for row in answer] == [["b", "c"], ["a", "c"]]
    assert answer[0][0][1] == pytest.approx(0.5) and type(answer[0][0][1]) is float
    assert [len(row) for row in decision.top(p, ["a", "b", "c"])] == [3, 3]


@quick
@given(seeds, st.integers(1, 6), st.integers(2, 8))
def test_pool_is_the_geometric_mean(seed, m, c):
    from scipy.stats import gmean

    p = decision.softmax(np.random.default_rng(seed).normal(size=(m, c)))
    expected = gmean(p, axis=0)
    assert decision.pool(p) == pytest.approx(expected / expected.sum())


def test_pool_of_equal_photos_is_that_photo_and_no_photo_has_a_veto():
    assert decision.pool([[0.7, 0.3]] * 4) == pytest.approx([0.7, 0.3])
    assert decision.pool([[1.0, 0.0]] + [[0.1, 0.9]] * 9)[1] > 0.5
    with pytest.raises(ValueError, match="at least one photo"):
        decision.pool(np.zeros((0, 3)))
