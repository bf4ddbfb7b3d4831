from __future__ import annotations

import json
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.evaluation import evaluation

CLASSES = ["ant", "bee", 'c "quoted"\nline 🐝']


def made_up(n=200, classes=CLASSES, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, len(classes), n)
    logits = rng.normal(size=(n, len(classes)))
    logits[np.arange(n), y] += 1.5
    p = np.exp(logits)
    p = (p / p.sum(1, keepdims=True)).astype(np.float32)
    return [f"{i}.jpg" for i in range(n)], [classes[i] for i in y], p, y


def test_the_numbers_are_scikit_learns():
    skm = pytest.importorskip("sklearn.metrics")
    paths, labels, p, y = made_up()
    result, called = evaluation(paths, labels, p, CLASSES), p.argmax(1)
    macro = skm.precision_recall_fscore_support(y, called, average="macro")
    assert result.n == 200 and result.excluded == 0 and result.top5 == 1
    assert result.top1 == pytest.approx(skm.accuracy_score(y, called))
    assert result.top1_ci95[0] < result.top1 < result.top1_ci95[1]
    assert (result.macro_precision, result.macro_recall, result.macro_f1) == pytest.approx(macro[:3])
    assert result.balanced_accuracy == pytest.approx(skm.balanced_accuracy_score(y, called))
    assert result.nll == pytest.approx(skm.log_loss(y, p), rel=1e-5)
    assert np.array_equal(result.confusion, skm.confusion_matrix(y, called))
    report = skm.classification_report(labels, [CLASSES[c] for c in called], output_dict=True)
    for name, scores in result.per_class.items():
        assert scores["n"] == report[name]["support"]
        assert scores["f1"] == pytest.approx(report[name]["f1-score"])


def test_predictions_table():
    paths, labels, p, y = made_up()
    table = evaluation(paths, labels, p, CLASSES, hashes=[f"h{i}" for i in range(200)]).predictions
    row = table.slice(7, 1).to_pylist()[0]
    best = np.argsort(-p[7])
    assert row["path"] == "7.jpg" and row["hash"] == "h7" and row["label"] == labels[7]
    assert row["predicted"] == CLASSES[best[0]] and row["label_2"] == CLASSES[best[1]]
    assert row["score"] == p[7].max() and row["label_score"] == p[7, y[7]]
    assert row["correct"] is bool(best[0] == y[7])
    assert row["label_4"] is None and row["score_5"] is None


def test_what_cannot_be_judged_is_left_out_and_counted():
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [np.nan, np.nan]])
    result = evaluation("abcd", ["x", "new", None, "x"], p, ["x", "y"], {"trained on": 3})
    assert result.n == 1 and result.top1 == 1 and result.excluded == 6
    assert result.excluded_by_reason == {
        "trained on": 3,
        "label never seen in training": 1,
        "no label": 1,
        "unreadable": 1,
    }
    assert list(result.per_class) == ["x"]


def test_nothing_left_is_one_line():
    with pytest.raises(FieldmarkError, match=r"no photo is left \(2 label never seen in training\)"):
        evaluation("ab", ["p", "q"], np.full((2, 2), 0.5), ["x", "y"])
    with pytest.raises(FieldmarkError, match=r"no photo is left$"):
        evaluation([], [], np.zeros((0, 2)), ["x", "y"])


def test_saved_and_printed(tmp_path):
    result = evaluation(*made_up()[:3], CLASSES)
    result.save(tmp_path)
    assert pq.read_table(tmp_path / "predictions.parquet").equals(result.predictions)
    told = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert told == json.loads(json.dumps(result.to_dict()))
    scores = {
        "top1",
        "top5",
        "balanced_accuracy",
        "macro_precision",
        "macro_recall",
        "macro_f1",
        "nll",
        "ece",
    }
    assert set(told) == scores | {"n", "top1_ci95", "per_class", "excluded", "excluded_by_reason"}
    assert CLASSES[2] in told["per_class"]


def test_to_pandas():
    pytest.importorskip("pandas")
    assert len(evaluation(*made_up()[:3], CLASSES).to_pandas()) == 200


def test_needs_no_heavy_library():
    import subprocess

    code = (
        "import sys, numpy as np; from fieldmark.runtime.evaluation import evaluation; "
        "evaluation(['a'], ['x'], np.array([[.9, .1]]), ['x', 'y']); "
        "print([m for m in ('torch', 'sklearn', 'scipy', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
