"""Settings of a run: what cannot be is refused before anything is written, and every kind does its work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from quick_runs import fit

from fieldmark.recognizer import Recognizer
from fieldmark.runtime.bundle import Bundle
from fieldmark.runtime.errors import UsageError


def test_settings_that_do_not_exist(photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no setting 'sise'.*size"):
        Recognizer(sise=3).fit(photo_folder, tmp_path / "run")
    with pytest.raises(UsageError, match="no method is called"):
        fit(photo_folder, tmp_path / "run", method="nonsense")
    with pytest.raises(UsageError, match="no mode"):
        Recognizer(mode="deep")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": -1}, "seed is -1: at least 0"),
        ({"folds": 1}, "folds is 1: at least 2"),
        ({"workers": 0}, "workers is 0: at least 1"),
        ({"workers": "2"}, "workers is '2': a whole number"),
        ({"size": "big"}, "size is 'big'"),
        ({"size": 7}, "size is 7: input should be greater than or equal to 8"),
        ({"size": [64, 5000]}, "size is 5000"),
        ({"resize": "bad"}, "resize is 'bad': input should be 'stretch', 'crop' or 'pad'"),
        ({"label_smoothing": 2.0}, "label_smoothing is 2.0"),
        ({"loss": "hinge"}, "no loss of instant mode is called 'hinge'"),
        ({"engine": "steam"}, "unknown engine 'steam'"),
        ({"precision": "f8"}, "unknown precision 'f8'"),
        ({"engine": "onnxruntime", "precision": "bf16"}, "f32"),
    ],
)
def test_settings_that_cannot_be(
    photo_folder: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        fit(photo_folder, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    "settings",
    [
        {"engine": "torch"},
        {"engine": "onnxruntime"},
        {"precision": "bf16"},
        {"method": "plain"},
        {"loss": "cross_entropy"},
        {"color_space": "lab", "resize": "pad"},
        {"size": 20},
        {"folds": 60},
        {"cache": False},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_every_kind(photo_folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    recognizer = fit(photo_folder, tmp_path / "run", **settings)
    assert recognizer.run["top1"] >= 0.25, "chance is a quarter"
    assert recognizer.predictor.check() < (0.05 if "precision" in settings else 1e-4)
    section = Bundle(tmp_path / "run/model").section
    assert section.preprocess.color_space == settings.get("color_space", "rgb")
    assert section.method == settings.get("method", "isqrt_cov")


def test_several_sizes(photo_folder: Path, tmp_path: Path) -> None:
    recognizer = fit(photo_folder, tmp_path / "run", size=[48, 64])
    section = recognizer.predictor.bundle.section
    assert section.scales == [64, 48] and section.preprocess.size == 64
    assert recognizer.predictor.check() < 1e-4
    assert len(recognizer.predict(photo_folder / "circle/000.jpg")[0].top) == 4
