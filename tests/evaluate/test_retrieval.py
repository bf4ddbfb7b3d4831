from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from fieldmark.evaluate import retrieval
from fieldmark.evaluate.retrieval import retrieval_report, similar
from fieldmark.runtime.errors import FieldmarkError


def clusters(n=120, classes=7, d=16, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return rng.normal(size=(classes, d))[y] + noise * rng.normal(size=(n, d)), y


@pytest.fixture(params=[4_000_000, 500])
def blocks(request, monkeypatch):
    """Everything in one block, and in many small ones."""
    monkeypatch.setattr(retrieval, "_BLOCK", request.param)
    monkeypatch.setattr(retrieval, "_STEP", 8192 if request.param > 1000 else 17)


def test_similar_is_scikit_learns_nearest_neighbours(blocks):
    from sklearn.neighbors import NearestNeighbors

    gallery, _ = clusters()
    query, _ = clusters(n=33, seed=1)
    index, score = similar(query, gallery, 9)
    distance, expected = NearestNeighbors(n_neighbors=9, metric="cosine").fit(gallery).kneighbors(query)
    assert np.array_equal(index, expected) and score == pytest.approx(1 - distance, abs=1e-5)


def test_similar_of_few_ties_zeros_and_half_precision():
    gallery = np.array([[1, 0], [2, 0], [0, 3], [0, 0]], np.float16)
    index, score = similar([[5, 0]], gallery, 10)
    assert index.tolist() == [[0, 1, 2, 3]] and score.tolist() == [[1, 1, 0, 0]]
    assert similar(np.zeros((0, 2)), gallery, 2)[0].shape == (0, 2)
    with pytest.raises(ValueError, match="are not"):
        similar([[1, 0, 0]], gallery)


def test_report_against_scikit_learn_and_plain_loops(blocks):
    from sklearn.metrics import roc_auc_score, roc_curve

    x, y = clusters(noise=1.5)
    report = retrieval_report(x, [f"class {i}" for i in y])
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = unit @ unit.T
    hits, aps = {k: [] for k in (1, 2, 4, 8)}, []
    for i in range(len(x)):
        order = [j for j in np.argsort(-cosine[i], kind="stable") if j != i]
        match = (y[order] == y[i]).astype(float)
        r = int(match.sum())
        if r:
            for k in hits:
                hits[k].append(match[:k].any())
            aps.append(sum(match[: j + 1].mean() for j in range(r) if match[j]) / r)
    assert report.n_queries == len(aps) and report.n == 120 and report.n_classes == 7
    assert report.map_at_r == pytest.approx(np.mean(aps))
    assert report.recall_at == pytest.approx({k: np.mean(v) for k, v in hits.items()})

    upper = np.triu_indices(len(x), 1)
    same = (y[:, None] == y)[upper]
    assert report.roc_auc == pytest.approx(roc_auc_score(same, cosine[upper]), abs=1e-4)
    far, tar, _ = roc_curve(same, cosine[upper], drop_intermediate=False)
    for at, value in report.tar_at_far.items():
        assert value == pytest.approx(tar[far <= at].max(), abs=2e-3)


def test_perfect_and_lonely():
    x = np.eye(4)[[0, 0, 1, 1, 2]]
    report = retrieval_report(x, list("aabbc"))
    assert report.recall_at[1] == report.map_at_r == report.roc_auc == 1 and report.n_queries == 4
    assert report.tar_at_far[1e-3] == 1
    assert json.loads(json.dumps(report.to_dict()))["recall_at"]["8"] == 1


@pytest.mark.parametrize("labels", [list("aaa"), list("abc")])
def test_nothing_to_judge_is_one_line(labels):
    with pytest.raises(FieldmarkError, match="at least two"):
        retrieval_report(np.eye(3), labels)


def test_memory_is_bounded(monkeypatch):
    """4,000 photos compared with each other: 64 MB of similarities, never held at once."""
    monkeypatch.setattr(retrieval, "_BLOCK", 100_000)
    x, y = clusters(n=4000, classes=50)
    x = x.astype(np.float32)
    tracemalloc.start()
    similar(x, x, 5)
    retrieval_report(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6
