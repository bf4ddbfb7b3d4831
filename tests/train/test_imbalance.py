"""Weights and priors from counts, against the formulas written out, and the choice between them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from fieldmark.runtime.errors import UsageError
from fieldmark.train import imbalance
from fieldmark.train.imbalance import Imbalance, choose, class_weights, log_prior, named, with_pairs

COUNTS = np.array([100, 20, 5, 1])


def test_inverse_equals_scikit_learn() -> None:
    labels = np.repeat(np.arange(4), COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(class_weights(COUNTS, "inverse"), expected, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.9, 0.99, 0.9999])
def test_effective_number_by_hand(beta: float) -> None:
    """The effective number is 1 + beta + ... + beta^(n - 1)."""
    raw = [1 / sum(beta**i for i in range(n)) for n in COUNTS.tolist()]
    mean = sum(w * n for w, n in zip(raw, COUNTS.tolist(), strict=True)) / 126
    np.testing.assert_allclose(class_weights(COUNTS, "effective", beta), np.array(raw) / mean, rtol=1e-5)


@pytest.mark.parametrize("how", ["inverse", "effective"])
def test_mean_over_photos_is_1(how: imbalance.Weighting) -> None:
    weights = class_weights(COUNTS, how)
    assert weights.dtype == np.float32
    assert (weights * COUNTS).sum() / COUNTS.sum() == pytest.approx(1)
    assert (np.diff(weights) > 0).all()
    np.testing.assert_allclose(class_weights(np.full(3, 7), how), 1, rtol=1e-6)


def test_effective_lies_between_inverse_and_even() -> None:
    inverse = class_weights(COUNTS, "inverse")
    spans = [np.ptp(np.log(class_weights(COUNTS, "effective", beta))) for beta in (0.01, 0.9, 0.99, 0.999999)]
    assert spans == sorted(spans)
    assert spans[0] < 0.02
    assert spans[-1] == pytest.approx(np.ptp(np.log(inverse)), rel=1e-3)


def test_log_prior_by_hand() -> None:
    expected = [2 * math.log(n / 126) for n in COUNTS.tolist()]
    np.testing.assert_allclose(log_prior(COUNTS, 2.0), expected, rtol=1e-6)
    assert np.exp(log_prior(COUNTS)).sum() == pytest.approx(1)


def test_a_class_without_photos_counts_as_one_photo() -> None:
    empty, one = np.array([10, 0, 3]), np.array([10, 1, 3])
    np.testing.assert_array_equal(log_prior(empty), log_prior(one))
    for how in ("inverse", "effective"):
        weights = class_weights(empty, how)  # type: ignore[arg-type]
        assert np.isfinite(weights).all() and weights[1] == weights.max()
        assert (weights * empty).sum() / 13 == pytest.approx(1)


@pytest.mark.parametrize(
    ("counts", "adjusted"),
    [([30, 30], False), ([49, 10], False), ([50, 10], True), ([9, 0], True), ([5], False)],
)
def test_choice(counts: list[int], adjusted: bool) -> None:
    chosen = choose(np.array(counts))
    assert chosen.logit_adjustment == (imbalance.TAU if adjusted else 0)
    assert (chosen.sampler, chosen.weights) == ("all", None)
    assert (chosen.log_prior(np.array(counts)) is not None) == adjusted
    assert chosen.why and "\n" not in chosen.why


def test_the_line_says_what_and_why() -> None:
    assert choose(COUNTS).why == (
        "1 to 100 photos a class, 100 to 1: logit adjustment, so that rare classes are not overlooked"
    )
    assert choose(np.array([30, 30])).why == "30 photos a class: even enough, nothing is done"


@pytest.mark.parametrize("name", imbalance.NAMES)
def test_by_name(name: str) -> None:
    asked = named(name, COUNTS)
    assert asked.why
    weight, prior = asked.weight(COUNTS), asked.log_prior(COUNTS)
    assert (weight is not None) == (name in ("inverse", "effective"))
    assert (prior is not None) == (name in ("auto", "logit_adjustment"))
    assert (asked.sampler == name) == (name in ("balanced", "square_root"))
    if weight is not None:
        np.testing.assert_array_equal(weight, class_weights(COUNTS, asked.weights))  # type: ignore[arg-type]


def test_batches_of_pairs_where_photos_are_compared() -> None:
    plain = named("none", COUNTS)
    assert with_pairs(plain, "cross_entropy+center") is plain
    for given in (with_pairs(plain, "focal+0.1*triplet"), with_pairs(plain, "focal", "paired")):
        assert given.sampler == "paired"
        assert given.why == "nothing is done, as asked for; batches hold several photos of a class"
    asked = with_pairs(named("balanced", COUNTS), "focal+contrastive")
    assert asked.sampler == "balanced" and "few photos then meet another" in asked.why
    adjusted = with_pairs(named("auto", COUNTS), "focal+contrastive")
    assert adjusted.sampler == "paired" and adjusted.logit_adjustment == imbalance.TAU


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'odd'.*auto, none, .*square_root"):
        named("odd", COUNTS)
    with pytest.raises(UsageError, match="paired"):
        named("paired", COUNTS)
    with pytest.raises(ValueError, match="inverse, effective"):
        class_weights(COUNTS, "odd")  # type: ignore[arg-type]
    for beta in (0.0, 1.0):
        with pytest.raises(ValueError, match="beta"):
            class_weights(COUNTS, "effective", beta)
    for counts in ([], [0, 0], [3, -1], [[1, 2]]):
        with pytest.raises(ValueError, match="counts"):
            class_weights(np.array(counts))
    with pytest.raises(AttributeError):
        Imbalance().sampler = "balanced"  # type: ignore[misc]
