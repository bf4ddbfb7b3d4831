from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.report.confusions import Confusions, confused_pairs, confusions, most_confused, similar_order
from fieldmark.runtime.evaluation import evaluation


def table(counts):
    counts = np.array(counts)
    return Confusions([f"class {i}" for i in range(len(counts))], counts, counts.sum(1))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_every_order_is_a_permutation_and_pairs_are_counted(seed, k):
    rng = np.random.default_rng(seed)
    of = table(rng.integers(0, 4, (k, k)) * (rng.random((k, k)) < 0.4))
    assert sorted(similar_order(of)) == list(range(k))
    pairs = confused_pairs(of, 1000)
    both = of.counts + of.counts.T
    assert sorted(p.a_as_b + p.b_as_a for p in pairs) == sorted(
        both[i, j] for i in range(k) for j in range(i) if both[i, j]
    )
    for pair in pairs:
        a, b = of.names.index(pair.a), of.names.index(pair.b)
        assert (pair.a_as_b, pair.b_as_a) == (of.counts[a, b], of.counts[b, a]) and pair.a_as_b >= pair.b_as_a
        assert (pair.n_a, pair.n_b) == (of.totals[a], of.totals[b])
    assert [p.a_as_b + p.b_as_a for p in pairs] == sorted((p.a_as_b + p.b_as_a for p in pairs), reverse=True)


def test_groups_that_are_confused_lie_together():
    """Five shuffled groups of four look-alikes with a little noise between them come out as five runs."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(5), 4))
    counts = np.where(group[:, None] == group, 5, 0) + (rng.random((20, 20)) < 0.05)
    counts[np.diag_indices(20)] = 30
    found = group[similar_order(table(counts))]
    assert (np.diff(found) != 0).sum() == 4


def test_a_chain_of_look_alikes_keeps_its_order():
    k = 8
    counts = np.diag(np.full(k, 20)) + np.diag(np.full(k - 1, 6), 1) + np.diag(np.full(k - 1, 6), -1)
    place = np.random.default_rng(3).permutation(k)
    order = [place[c] for c in similar_order(table(counts[np.ix_(place, place)]))]
    steps = np.abs(np.diff(order))
    assert steps.mean() <= 1.6  # a chain taken apart at random steps 3 on average


def test_most_confused_keeps_to_its_limit_and_order():
    rng = np.random.default_rng(0)
    of = table(rng.integers(0, 3, (40, 40)))
    chosen = most_confused(of, 14)
    assert len(chosen) == 14 and chosen == sorted(chosen)


def test_a_limit_keeps_the_classes_with_most_mistakes():
    classes = list("abcdef")
    true, called = "aabbccddeeff", "aabbccdeedff"
    p = np.array([[name == c for c in classes] for name in called], float)
    result = evaluation([str(i) for i in range(12)], list(true), p, classes)
    whole = confusions(result, 10)
    assert whole.names == classes and np.array_equal(whole.counts, result.confusion)
    part = confusions(result, 2)
    assert (
        part.names == ["d", "e"]
        and part.counts.tolist() == [[1, 1], [1, 1]]
        and part.totals.tolist() == [2, 2]
    )
