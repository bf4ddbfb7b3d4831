"""A training run: what it writes, what it tells, what the second one costs, and what a kill leaves."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quick_runs import QUICK, fit, head, write_table

from fieldmark.data import split as splitting
from fieldmark.recognizer import Recognizer
from fieldmark.runtime.bundle import CARD, FILES, Bundle
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.image import content_hash
from fieldmark.runtime.metrics import wilson

Painter = Any


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> tuple[Recognizer, Path]:
    """One run with everything that a run writes."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return fit(photo_folder, out, report=True), out


def test_summary_has_the_fields_of_the_issue(whole: tuple[Recognizer, Path]) -> None:
    recognizer, out = whole
    run = recognizer.run
    assert set(run) == {
        "model",
        "mode",
        "top1",
        "n_train",
        "n_test",
        "seconds",
        "seconds_evaluate",
        "skipped",
    }
    assert run["model"] == str(out / "model") and run["mode"] == "instant" and run["skipped"] == 0
    assert run["n_train"] + run["n_test"] == 48 and 0 <= run["top1"] <= 1
    assert run["seconds"] > 0 and run["seconds_evaluate"] > 0
    assert json.loads(json.dumps(run)) == run, "plain numbers and text"


def test_the_run_folder(whole: tuple[Recognizer, Path], photo_folder: Path) -> None:
    recognizer, out = whole
    assert {path.name for path in out.iterdir()} == {
        "model",
        "run.json",
        "split.csv",
        "skipped.csv",
        "report.html",
        "predictions.parquet",
        "evaluation.json",
    }
    assert {path.name for path in (out / "model").iterdir()} == {*FILES, CARD, "config.json"}
    assert "Light is where the model looked" in (out / "report.html").read_text(encoding="utf-8")
    Bundle(out / "model").verify()
    assert recognizer.predictor.check() < 1e-4, "the engine computes what was trained"
    notes = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert notes["result"] == recognizer.run and notes["seed"] == 0
    assert notes["command"] and notes["versions"]["fieldmark"] and notes["versions"]["numpy"]
    assert len(notes["data"]["sha256"]) == 64 and notes["data"]["photos"] == 48
    assert (out / "skipped.csv").read_text() == "path,reason\n" or (
        out / "skipped.csv"
    ).read_text() == "path,reason\r\n"
    told = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert told["n"] == recognizer.run["n_test"] and told["top1"] == recognizer.run["top1"]


def test_the_split_reads_back(whole: tuple[Recognizer, Path], photo_folder: Path) -> None:
    _, out = whole
    back = Catalog.read(out / "split.csv")
    assert back == splitting.assign(Catalog.read(photo_folder), seed=0)
    known = Bundle(out / "model").splits()
    assert known == {
        content_hash(Path(path).read_bytes()): split
        for path, split in zip(back.paths, back.splits, strict=True)
    }


def test_training_again_on_its_split_is_the_same(whole: tuple[Recognizer, Path], tmp_path: Path) -> None:
    recognizer, out = whole
    again = fit(out / "split.csv", tmp_path / "again")
    for name in ("top1", "n_train", "n_test"):
        assert again.run[name] == recognizer.run[name]
    assert head(tmp_path / "again") == head(out)


def test_evaluation_of_the_run_is_evaluate(whole: tuple[Recognizer, Path], photo_folder: Path) -> None:
    """By the file of splits, and by content where the folder says nothing: the same photos, the same scores."""
    recognizer, out = whole
    told = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    for source in (out / "split.csv", photo_folder):
        found = Recognizer.load(out).evaluate(source).to_dict()
        assert set(found) == {
            "n",
            "top1",
            "top1_ci95",
            "top5",
            "balanced_accuracy",
            "macro_precision",
            "macro_recall",
            "macro_f1",
            "nll",
            "ece",
            "per_class",
            "excluded",
            "excluded_by_reason",
        }
        assert all(set(of) == {"n", "precision", "recall", "f1"} for of in found["per_class"].values())
        left_out = recognizer.run["n_train"] if source == photo_folder else 0
        assert found.pop("excluded") == left_out
        found.pop("excluded_by_reason")
        told = {name: told[name] for name in found}
        assert found == told
        low, high = wilson(round(found["top1"] * found["n"]), found["n"])
        assert found["top1_ci95"] == pytest.approx([low, high])


def test_the_same_seed_gives_the_same_bytes(
    whole: tuple[Recognizer, Path], photo_folder: Path, tmp_path: Path
) -> None:
    _, out = whole
    fit(photo_folder, tmp_path / "same", workers=1)
    fit(photo_folder, tmp_path / "other", seed=1)
    assert head(tmp_path / "same") == head(out) != head(tmp_path / "other")
    for name in ("model.onnx", "model.safetensors", "golden.npz", "split.parquet", "stats.safetensors"):
        if name != "golden.npz":  # a zip file holds the time
            assert (tmp_path / "same/model" / name).read_bytes() == (out / "model" / name).read_bytes(), name
    one, other = Bundle(out / "model").golden(), Bundle(tmp_path / "same/model").golden()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    notes = [json.loads((where / "run.json").read_text()) for where in (out, tmp_path / "same")]
    assert notes[0]["data"]["sha256"] == notes[1]["data"]["sha256"]


def test_the_second_time_nothing_is_computed(
    photo_folder: Path, tmp_path: Path, paint_photos: Painter
) -> None:
    """Known photos come from the cache, under whatever name; only new ones are looked at."""
    photos = shutil.copytree(photo_folder, tmp_path / "photos")
    fit(write_table(tmp_path / "a.csv", photos, lambda n: "train" if n < 8 else "test"))
    paint_photos(tmp_path / "more", each=3, seed=99)
    for index, new in enumerate(sorted((tmp_path / "more").rglob("*.jpg"))):
        shutil.move(new, photos / new.parent.name / f"{100 + index}.jpg")

    def split(number: int) -> str:
        return "train" if number < 8 or number >= 100 else "test"

    table = write_table(tmp_path / "b.csv", photos, split)
    for expected in (12, 0):
        out = tmp_path / f"run {expected}"
        assert fit(table, out).run["n_train"] == 44
        assert json.loads((out / "run.json").read_text())["computed"] == expected


def test_seconds_count_from_when_it_is_told(photo_folder: Path) -> None:
    started = time.time() - 1000
    run = Recognizer(**QUICK, report=False).fit(photo_folder, started=started).run
    assert 1000 < run["seconds"] < 1100 and run["seconds_evaluate"] < 100


@pytest.mark.parametrize("stage", ["assemble", "_weights", "_golden", "write_splits", "model_card", "seal"])
def test_a_full_disk_leaves_no_half_model(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    from fieldmark.train.bundle import write

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, stage, full)
    with pytest.raises(FieldmarkError, match="the disk is full"):
        fit(photo_folder, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == [], "nothing is left, and the place is free again"


def test_where_one_engine_answers_wrongly_the_other_serves(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fieldmark.runtime.predictor import Predictor

    real = Predictor.check

    def wrong(self: Predictor) -> float:
        if self.engine().name == "openvino":
            raise FieldmarkError("openvino does not compute it")
        return real(self)

    monkeypatch.setattr(Predictor, "check", wrong)
    recognizer = fit(photo_folder, tmp_path / "run")
    assert "onnxruntime answers for this model: openvino does not compute it" in recognizer.warnings
    loaded = Predictor.load(tmp_path / "run/model")
    assert loaded.engine().name == recognizer.predictor.engine().name == "onnxruntime"
    assert Predictor.load(tmp_path / "run/model", engine="openvino").engine().name == "openvino", "as asked"


def test_a_model_that_answers_wrongly_is_not_left(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fieldmark.runtime.predictor import Predictor

    def wrong(self: Predictor) -> float:
        raise FieldmarkError("golden answers differ")

    monkeypatch.setattr(Predictor, "check", wrong)
    with pytest.raises(FieldmarkError, match="golden"):
        fit(photo_folder, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_the_most_frequent_mistakes_need_no_matrix() -> None:
    """Of 10,000 classes it would take 800 MB, and as much again to sort it."""
    from fieldmark.run import _confusions
    from fieldmark.runtime.evaluation import evaluation

    called = [1] * 3 + [2] * 2 + [0] * 5 + [*range(3, 30)]
    result = evaluation(
        [f"{i}" for i in range(37)], ["c0"] * 37, np.eye(30)[called], [f"c{i}" for i in range(30)]
    )
    found = _confusions(result)
    assert found[:2] == [
        {"label": "c0", "predicted": "c1", "n": 3},
        {"label": "c0", "predicted": "c2", "n": 2},
    ]
    assert len(found) == 20 and all(one["label"] != one["predicted"] for one in found)
    assert "confusion" not in vars(result), "the matrix was not made"
