from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.evaluate.compare import _resamples, _scores, compare, mcnemar
from fieldmark.runtime.errors import FieldmarkError


def run(folder, label, predicted, paths=None, hashes=None):
    folder.mkdir()
    names = [f"class {i}" for i in range(50)]
    columns = {
        "path": paths or [f"{i}.jpg" for i in range(len(label))],
        "label": [names[i] for i in label],
        "predicted": [names[i] for i in predicted],
    }
    if hashes:
        columns["hash"] = hashes
    pq.write_table(pa.table(columns), folder / "predictions.parquet")
    return folder


def answers(rng, n, accuracies, classes=6):
    """True labels and, for every accuracy, answers that are right that often, independently."""
    label = rng.integers(0, classes, n)
    wrong = (label + rng.integers(1, classes, n)) % classes
    return label, *(np.where(rng.random(n) < accuracy, label, wrong) for accuracy in accuracies)


@given(st.integers(0, 300), st.integers(0, 300))
@settings(deadline=None)
def test_mcnemar_is_scipys_binomial_test(only_a, only_b):
    from scipy.stats import binomtest

    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-6)


def test_mcnemar_of_many_photos_is_quick_and_finite():
    assert mcnemar(20_000, 20_400) == pytest.approx(0.0471, abs=1e-3)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_scores_of_a_resample_are_scikit_learns(seed):
    from sklearn.metrics import accuracy_score, f1_score

    rng = np.random.default_rng(seed)
    label, a, b = answers(rng, 40, (0.8, 0.5))
    drawn = rng.integers(0, 40, 40)
    scores = _scores(np.bincount(drawn, minlength=40)[None], label, a, b)[0]
    for i, called in enumerate((a, b)):
        assert scores[0, i] == pytest.approx(accuracy_score(label[drawn], called[drawn]))
        assert scores[1, i] == pytest.approx(f1_score(label[drawn], called[drawn], average="macro"))


def test_resampling_kinds_is_resampling_photos():
    """The spread of the gap is that of a plain bootstrap over photos."""
    rng = np.random.default_rng(0)
    label, a, b = answers(rng, 200, (0.7, 0.8))
    ours = np.concatenate(list(_resamples(label, a, b, 4000, 0)))
    drawn = rng.integers(0, 200, (4000, 200))
    plain = np.concatenate([_scores(np.bincount(d, minlength=200)[None], label, a, b) for d in drawn])
    for score in range(2):
        gap, expected = (x[:, score, 1] - x[:, score, 0] for x in (ours, plain))
        assert gap.mean() == pytest.approx(expected.mean(), abs=0.003)
        assert gap.std() == pytest.approx(expected.std(), rel=0.05)


def test_the_interval_covers_the_truth(tmp_path):
    """Of 200 made-up pairs of runs whose true gap is known, about 95% have it in their interval."""
    rng, covered, times = np.random.default_rng(1), 0, 200
    for _ in range(times):
        label, a, b = answers(rng, 300, (0.75, 0.80))
        sample = np.concatenate(list(_resamples(label, a, b, 400, 0)))[:, 0]
        low, high = np.percentile(sample[:, 1] - sample[:, 0], [2.5, 97.5])
        covered += low <= 0.05 <= high
    assert 0.90 <= covered / times <= 0.99


def test_a_real_difference_is_told(tmp_path):
    label, a, b = answers(np.random.default_rng(0), 1500, (0.85, 0.90))
    result = compare(run(tmp_path / "a", label, a), run(tmp_path / "b", label, b), n=2000)
    assert result.n == 1500 and result.better == "b"
    assert result.verdict.startswith("B is better by ") and "p<0.001" in result.verdict
    assert result.top1.a == pytest.approx((a == label).mean())
    assert result.top1.difference == pytest.approx((b == label).mean() - (a == label).mean())
    assert result.top1.ci95[0] < result.top1.difference < result.top1.ci95[1]
    assert result.macro_f1.ci95[0] < result.macro_f1.difference < result.macro_f1.ci95[1]
    assert json.loads(json.dumps(result.to_dict()))["top1"]["ci95"] == list(result.top1.ci95)
    swapped = compare(tmp_path / "b", tmp_path / "a", n=2000)
    assert swapped.better == "a" and swapped.p_value == result.p_value
    assert compare(tmp_path / "a", tmp_path / "b", n=2000) == result


def test_no_difference_is_not_claimed(tmp_path):
    label, a, b = answers(np.random.default_rng(0), 200, (0.85, 0.86))
    result = compare(run(tmp_path / "a", label, a), run(tmp_path / "b", label, b), n=2000)
    assert result.better is None and "cannot be told apart on 200 photos" in result.verdict
    same = compare(tmp_path / "a", tmp_path / "a", n=100)
    assert same.p_value == 1 and same.top1.ci95 == (0, 0) and same.better is None


def test_photos_are_matched_by_hash_else_by_path(tmp_path):
    label = np.arange(10) % 3
    a = run(tmp_path / "a", label, label, hashes=[f"h{i}" for i in range(10)])
    moved = run(
        tmp_path / "moved",
        label[4:],
        np.zeros(6, int),
        [f"elsewhere/{i}" for i in range(6)],
        [f"h{i}" for i in range(4, 10)],
    )
    result = compare(a, moved / "predictions.parquet", n=50)
    assert result.n == 6 and result.top1.a == 1 and result.top1.b == pytest.approx(2 / 6)
    by_path = run(tmp_path / "by_path", label[:3], label[:3])
    assert compare(a, by_path, n=50).n == 3


def test_photos_of_one_run_alone_and_copies_are_told(tmp_path):
    from typer.testing import CliRunner

    from fieldmark.cli import app

    label = np.zeros(6, int)
    a = run(tmp_path / "a", label, label, list("abcdef"), ["1", "2", "3", "3", "3", "4"])
    b = run(tmp_path / "b", label[:5], label[:5], list("ghijk"), ["1", "3", "5", "5", "6"])
    result = compare(a, b, n=10)
    assert (result.n, result.only_in_a, result.only_in_b, result.copies) == (2, 2, 2, 3)
    told = result.to_dict()
    assert (told["only_in_a"], told["only_in_b"], told["copies"]) == (2, 2, 3)
    done = CliRunner().invoke(app, ["compare", str(a), str(b), "--samples", "100"])
    assert "2 shared photos; 2 only in A, 2 only in B, 3 copies" in done.stdout
    same = compare(a, a, n=10)
    assert (same.n, same.only_in_a, same.only_in_b, same.copies) == (4, 0, 0, 2)
    by_path = run(tmp_path / "by_path", label[:3], label[:3], list("aab"))
    assert compare(by_path, by_path, n=10).copies == 1


def test_copies_with_other_labels_are_matched_by_their_path(tmp_path):
    """In any order of the rows; where the paths differ, too, the first stands for all."""
    label = np.array([0, 1, 2])
    paths, hashes = ["x.jpg", "y.jpg", "z.jpg"], ["1", "1", "2"]
    a = run(tmp_path / "a", label, label, paths, hashes)
    b = run(tmp_path / "b", label[::-1], label[::-1], paths[::-1], hashes[::-1])
    result = compare(a, b, n=10)
    assert (result.n, result.copies, result.top1.a, result.top1.b) == (2, 1, 1, 1)


def test_photos_of_unknown_hash_are_matched_by_path(tmp_path):
    label = np.arange(3)
    a = run(tmp_path / "a", label, label, list("abc"), ["1", None, ""])
    assert compare(a, a, n=10).n == 3


def test_a_model_folder_stands_for_its_run(tmp_path):
    label = np.arange(4)
    folder = run(tmp_path / "run", label, label)
    (folder / "model").mkdir()
    assert compare(folder / "model", folder, n=10).n == 4


def test_errors_are_one_line(tmp_path):
    label = np.arange(4)
    a = run(tmp_path / "a", label, label)
    other = run(tmp_path / "other", label, label, ["w", "x", "y", "z"])
    relabelled = run(tmp_path / "relabelled", label[::-1], label)
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    (tmp_path / "text").write_text("not parquet")
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "other.parquet")
    for wrong, message in [
        (other, "share no photo"),
        (relabelled, "disagree on the true class of 4 photos: 0.jpg is 'class 0'"),
        (tmp_path / "none", "no such run"),
        (tmp_path / "empty" / "deep", "no predictions.parquet"),
        (tmp_path / "text", "not a Parquet file"),
        (tmp_path / "other.parquet", "no column 'label'"),
    ]:
        with pytest.raises(FieldmarkError, match=message) as caught:
            compare(a, wrong, n=10)
        assert "\n" not in str(caught.value)
