"""Every metric against an independent reference: scikit-learn, scipy, torchmetrics or netcal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.runtime import metrics

skm = pytest.importorskip("sklearn.metrics")
quick = settings(deadline=None, max_examples=50)
pytestmark = pytest.mark.filterwarnings("ignore")


@st.composite
def answers(draw, max_n=60):
    """Probabilities [N, C] and labels: ties, sure answers (0 and 1), absent classes, a single photo."""
    n, c = draw(st.integers(1, max_n)), draw(st.integers(2, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sharp = draw(st.sampled_from([0.3, 1.0, 5.0, 300.0]))
    logits = rng.normal(size=(n, c)) * sharp
    labels = rng.integers(0, draw(st.integers(1, c)), n)
    logits[np.arange(n), labels] += draw(st.sampled_from([0.0, sharp]))
    p = np.exp(logits - logits.max(1, keepdims=True))
    if draw(st.booleans()):
        p = np.ceil(p * 4)  # ties
    return p / p.sum(1, keepdims=True), labels


@quick
@given(answers(), st.integers(1, 10))
def test_top_k_accuracy(case, k):
    p, y = case
    order = np.argsort(-p, axis=1, kind="stable")[:, :k]
    assert metrics.top_k_accuracy(p, y, k) == pytest.approx((order == y[:, None]).any(1).mean())
    if k == 1:
        assert metrics.top_k_accuracy(p, y) == pytest.approx(skm.accuracy_score(y, p.argmax(1)))
    if all(len(np.unique(row)) == p.shape[1] for row in p):
        expected = skm.top_k_accuracy_score(y, _as_scores(p), k=k, labels=range(p.shape[1]))
        assert metrics.top_k_accuracy(p, y, k) == pytest.approx(expected)


def _as_scores(p):
    """scikit-learn wants one column of scores where there are two classes."""
    return p if p.shape[1] > 2 else p[:, 1]


@quick
@given(st.integers(0, 400), st.integers(1, 400))
def test_wilson(right, n):
    from scipy.stats import binomtest

    right = min(right, n)
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert metrics.wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_knows_nothing():
    assert metrics.wilson(0, 0) == (0.0, 1.0)


@quick
@given(answers())
def test_confusion_and_class_scores(case):
    p, y = case
    c, called = p.shape[1], p.argmax(1)
    assert np.array_equal(
        metrics.confusion_matrix(y, called, c), skm.confusion_matrix(y, called, labels=range(c))
    )
    scores = metrics.class_scores(y, called, c)
    expected = skm.precision_recall_fscore_support(y, called, labels=range(c), zero_division=0)
    for ours, theirs in zip((scores.precision, scores.recall, scores.f1, scores.n), expected, strict=True):
        assert ours == pytest.approx(theirs)
    macro = skm.precision_recall_fscore_support(y, called, average="macro", zero_division=0)[:3]
    assert scores.macro() == pytest.approx(macro)
    assert scores.balanced_accuracy() == pytest.approx(skm.balanced_accuracy_score(y, called))


def test_macro_leaves_out_absent_classes_and_counts_wrongly_called_ones():
    # class 2 occurs only as a wrong prediction: it counts as 0; class 3 occurs nowhere: left out
    scores = metrics.class_scores([0, 0, 1, 1], [0, 0, 1, 2], 4)
    assert scores.macro()[1] == pytest.approx((1 + 0.5 + 0) / 3)
    assert scores.balanced_accuracy() == pytest.approx((1 + 0.5) / 2)


@quick
@given(answers(), st.sampled_from([np.float32, np.float64]))
def test_nll_and_brier(case, dtype):
    p, y = case
    p, classes = p.astype(dtype), range(p.shape[1])
    assert metrics.nll(p, y) == pytest.approx(skm.log_loss(y, p, labels=classes), rel=1e-5, abs=1e-6)
    if p.shape[1] > 2:
        expected = skm.brier_score_loss(y, p, labels=classes, scale_by_half=False)
    else:
        expected = 2 * skm.brier_score_loss(y == 1, p[:, 1], pos_label=True)
    assert metrics.brier(p, y) == pytest.approx(expected, abs=1e-6)


def test_nll_of_a_sure_mistake_is_finite():
    assert np.isfinite(metrics.nll(np.array([[1.0, 0.0]]), [1]))


@quick
@given(answers())
def test_ece_as_torchmetrics(case):
    torch = pytest.importorskip("torch")
    from torchmetrics.functional.classification import multiclass_calibration_error

    p, y = case
    p = p[:, :-1] * 0.97 / (p[:, :-1].sum(1, keepdims=True) + 1e-9) + 1e-5  # it gives 1.0 a bin of its own
    if p.shape[1] < 2:
        return
    y = y % p.shape[1]
    p = p.astype(np.float32)
    theirs = multiclass_calibration_error(
        torch.from_numpy(p), torch.from_numpy(y), num_classes=p.shape[1], n_bins=15, norm="l1"
    )
    assert metrics.ece(p, y) == pytest.approx(float(theirs), abs=1e-5)


def test_ece_as_netcal():
    from netcal.metrics import ECE

    rng = np.random.default_rng(0)
    for n, c, sharp in [(1, 3, 1), (7, 2, 1), (500, 5, 3), (500, 5, 200), (2000, 40, 2)]:
        logits = rng.normal(size=(n, c)) * sharp
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        y = rng.integers(0, c, n)
        if len(np.unique(y)) > 2:
            expected = ECE(15).measure(p, y)
        else:  # it would take two classes for positive and negative: ask it whether the top label is right
            expected = ECE(15, detection=True).measure(p.max(1), (p.argmax(1) == y).astype(int))
        assert metrics.ece(p, y) == pytest.approx(expected, abs=1e-9)


def test_ece_bin_edges():
    assert metrics.ece(np.array([[1.0, 0.0]] * 4), [0, 0, 0, 1]) == pytest.approx(
        0.25
    )  # 1.0 is in the last bin
    bins = metrics.reliability([0.0, 0.2, 0.2, 1.0], [1, 0, 1, 1], bins=5)
    assert bins.count.tolist() == [1, 2, 0, 0, 1] and np.isnan(bins.accuracy[2])


@quick
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 20))
def test_retrieval(seed, queries, gallery):
    rng = np.random.default_rng(seed)
    scores, match = (
        rng.permuted(np.tile(np.arange(gallery), (queries, 1)), axis=1),
        rng.random((queries, gallery)) < 0.3,
    )
    ranked = np.take_along_axis(match, np.argsort(-scores, axis=1), axis=1)
    expected = [
        skm.average_precision_score(m, s) if m.any() else 0.0 for m, s in zip(match, scores, strict=True)
    ]
    assert metrics.average_precision(ranked) == pytest.approx(expected)

    relevant = match.sum(1)
    at_r = []
    for row, r in zip(ranked, relevant, strict=True):
        at_r.append(sum(row[:i].mean() for i in range(1, r + 1) if row[i - 1]) / r if r else 0.0)
    assert metrics.average_precision_at_r(ranked, relevant) == pytest.approx(at_r)


@quick
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_recall_at_k_as_torchmetrics(seed, k):
    torch = pytest.importorskip("torch")
    from torchmetrics.functional.retrieval import retrieval_hit_rate

    rng = np.random.default_rng(seed)
    ranked = rng.random((8, 9)) < 0.2
    falling = torch.arange(9, 0, -1).float()
    expected = np.mean([float(retrieval_hit_rate(falling, torch.from_numpy(row), top_k=k)) for row in ranked])
    assert metrics.recall_at_k(ranked, k) == pytest.approx(expected)


@quick
@given(st.integers(0, 2**32 - 1), st.integers(2, 300), st.booleans(), st.floats(0, 1))
def test_roc(seed, pairs, ties, far):
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < 0.4
    same[:2] = True, False
    scores = rng.normal(size=pairs) + same
    scores = scores.round() if ties else scores
    curve = metrics.roc(scores, same)
    theirs_far, theirs_tar, _ = skm.roc_curve(same, scores, drop_intermediate=False)
    assert curve.far == pytest.approx(theirs_far) and curve.tar == pytest.approx(theirs_tar)
    assert curve.auc == pytest.approx(skm.roc_auc_score(same, scores))
    assert curve.tar_at(far) == pytest.approx(theirs_tar[theirs_far <= far].max())


def test_roc_needs_both_kinds():
    with pytest.raises(ValueError, match="same and one different"):
        metrics.roc([0.1, 0.2], [True, True])
