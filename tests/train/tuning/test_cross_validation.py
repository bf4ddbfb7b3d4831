"""Cross-validation of fine-tuning: who is judged by whom, what is kept of a fold, and how a budget is divided."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fieldmark.recognizer import Recognizer
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train.instant import Looked
from fieldmark.train.loop.watch import Watch
from fieldmark.train.recipe import Recipe
from fieldmark.train.settings import Settings
from fieldmark.train.trained import by_fold
from fieldmark.train.tuning import cross_validation
from fieldmark.train.tuning.coarse import Coarse
from fieldmark.train.tuning.cross_validation import cross_validate, first_share

CLASSES = ["a", "b", "c"]


def test_by_fold() -> None:
    found = by_fold(np.array([0, 0, 2, 2, 2]), np.array([True, False, True, True, False]))
    assert found["folds"] == [{"fold": 1, "n": 2, "top1": 0.5}, {"fold": 3, "n": 3, "top1": 2 / 3}]
    assert found["mean"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert found["spread"] == pytest.approx((2 / 3 - 0.5) / 2**0.5), "of a sample of folds"
    assert by_fold(np.zeros(3), np.ones(3, bool))["spread"] is None


def test_the_first_share_of_a_budget() -> None:
    recipe = Recipe(budget=600, folds=5)
    assert first_share(recipe, 60.0).budget == pytest.approx(60 + 540 / 6)
    assert first_share(recipe, 900.0).budget == 600
    assert first_share(Recipe(budget=600), 60.0).budget == 600
    assert first_share(Recipe(epochs=3, folds=5), 60.0).budget is None


class World:
    """Photos whose descriptor is their class, and trainings that only note what they were given."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, labels: str = "aabbccaabbcc"):
        n = len(labels)
        y = np.array([CLASSES.index(label) for label in labels])
        z = np.eye(3, dtype=np.float16)[y]
        names = [f"photo {i}" for i in range(n)]
        fold = np.arange(n) % 3
        graph: Any = None
        self.looked = Looked(graph, CLASSES, names, names, y, np.arange(n), fold, z, [3])
        self.parts: list[tuple[Looked, np.ndarray]] = []
        self.budgets: list[float | None] = []
        self.coarse: list[list[str]] = []
        self.interrupt: int | None = None
        self.fails: int | None = None
        self.trains = True
        world = self

        class Training:
            def __init__(
                self, instant: Any, recipe: Recipe, place: Path, watch: Watch, report: Any, *more: Any
            ):
                self.folder, self.report, self.watch = place, report, watch
                self.settings = Settings()
                world.budgets.append(recipe.budget)
                world.coarse.append(more[-1].paths)
                assert abs(watch.spent) < 5, "its own clock"

            def fit(self, part: Looked, held: np.ndarray) -> Any:
                world.parts.append((part, held))
                number = len(world.parts)
                self.report("training", 1, 2)
                self.report("", 0, None, "1. a plan")
                if number == world.fails:
                    raise FieldmarkError("no luck")
                if world.trains:
                    (self.folder / "phase-1").mkdir(parents=True, exist_ok=True)
                    (self.folder / "maps-1.f16").write_bytes(b"large")
                self.stopped = "interrupted" if number == world.interrupt else "done"
                head = SimpleNamespace(temperature=1.0, logits=self.logits(part))
                return SimpleNamespace(
                    mode="instant",
                    head=head,
                    settings=self.settings,
                    chosen={"epochs": 2.0},
                )

            def logits(self, part: Looked) -> Any:
                """Right for all classes that the part shows."""
                of = [CLASSES.index(name) for name in part.classes]
                return lambda z: 9 * z.astype(np.float32)[:, of]

        monkeypatch.setattr(cross_validation, "Finetune", Training)
        self.said: list[tuple[Any, ...]] = []
        self.run: Any = SimpleNamespace(
            instant=SimpleNamespace(warnings=["mine"], tried=[], report=None),
            settings=Settings(),
            folder=folder / "checkpoints",
            watch=Watch(time.time() - 100),
            report=lambda *values: self.said.append(values),
            planner=SimpleNamespace(rate=2.0),
            accelerator=SimpleNamespace(is_main_process=True),
            ranks={},
            boxes=None,
            coarse=Coarse(["alike photo 1", "like none"], ["x", "y"], np.array([1, 100])),
        )

    def validate(self, recipe: Recipe | None = None) -> Any:
        trained: Any = SimpleNamespace(warnings=[], cross_validation=None, out_of_fold=None)
        cross_validate(self.run, recipe or Recipe(epochs=1, folds=3), self.looked, trained)
        return trained


def test_each_photo_is_judged_by_a_model_that_had_no_use_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    trained = world.validate()
    assert len(world.parts) == 3
    for number, (part, held) in enumerate(world.parts):
        kept = {
            name for name, fold in zip(world.looked.paths, world.looked.fold, strict=True) if fold == number
        }
        assert not kept & set(part.paths) and len(part.paths) + len(kept) == 12
        assert len(held) == len(part.paths), "it holds out photos of its own"
        assert world.coarse[number] == (["alike photo 1"] if number != 1 else []) + ["like none"]
    table = trained.out_of_fold.predictions
    assert table["path"].to_pylist() == world.looked.paths
    assert table["fold"].to_pylist() == (world.looked.fold + 1).tolist()
    assert trained.out_of_fold.top1 == 1.0
    summary = trained.cross_validation
    assert summary["mean"] == 1.0 and summary["spread"] == 0.0
    assert [one["fold"] for one in summary["folds"]] == [1, 2, 3]
    assert {(one["mode"], one["epochs"], one["n"]) for one in summary["folds"]} == {("instant", 2.0, 4)}
    assert world.said == [(f"fold {number} of 3: training", 1, 2, "") for number in (1, 2, 3)]
    assert world.run.instant.warnings == ["mine"] and trained.warnings == []


def test_a_class_that_only_one_fold_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its photos cannot be named right, and the others' answers keep their places."""
    world = World(tmp_path, monkeypatch, "aabbaabbaabc")
    trained = world.validate()
    right = trained.out_of_fold.predictions["correct"].to_pylist()
    assert right == [True] * 11 + [False]


def test_a_killed_run_keeps_its_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = World(tmp_path / "whole", monkeypatch).validate()
    killed = World(tmp_path / "killed", monkeypatch)
    killed.interrupt = 3
    trained = killed.validate()
    assert trained.warnings == ["cross-validation ended after 2 of 3 folds"]
    assert len(trained.cross_validation["folds"]) == 2 and trained.out_of_fold.n == 8
    kept = {path.name for path in (tmp_path / "killed/checkpoints/fold-1").iterdir()}
    assert kept == {"result.npy", "result.json"}, "maps and weights are gone"
    again = World(tmp_path / "killed", monkeypatch)
    resumed = again.validate()
    assert len(again.parts) == 1, "two were done"
    assert resumed.out_of_fold.predictions.equals(whole.out_of_fold.predictions)
    other = World(tmp_path / "killed", monkeypatch, "aabbccaabbca")
    other.looked.content[0] = "another photo"
    other.validate()
    assert len(other.parts) == 3, "other photos: nothing is taken over"


def test_folds_too_small_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their instant models answer, and nothing was written on the way."""
    world = World(tmp_path, monkeypatch)
    world.trains = False
    assert world.validate().out_of_fold.n == 12
    again = World(tmp_path, monkeypatch)
    assert again.validate().out_of_fold.n == 12 and not again.parts, "all three are kept"


def test_a_fold_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    world.fails = 1
    trained = world.validate()
    assert trained.warnings == ["fold 1: no luck; cross-validation ended after 0 of 3 folds"]
    assert trained.cross_validation is None and trained.out_of_fold is None


def test_folds_share_what_is_left_of_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    world.validate(Recipe(budget=400, folds=3))
    answering = 4 / 2.0
    assert world.budgets == pytest.approx([300 / 3 - answering, 300 / 2 - answering, 300 - answering], abs=3)
    late = World(tmp_path / "late", monkeypatch)
    late.validate(Recipe(budget=50, folds=3))
    assert late.budgets == [1.0, 1.0, 1.0], "too small for anything but instant models"


@pytest.mark.slow
def test_the_whole_way(photo_folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    recognizer = Recognizer(
        backbone="test_efficientnet", pretrained=False, size=64, epochs=1, folds=2, batch=8
    ).fit(photo_folder, tmp_path / "run")
    notes = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))
    found = notes["cross_validation"]
    table = pq.read_table(tmp_path / "run/out_of_fold.parquet")
    assert table.num_rows == recognizer.run["n_train"] and len(found["folds"]) == 2
    right = [np.mean(table.filter(table["fold"].to_numpy() == k)["correct"].to_numpy()) for k in (1, 2)]
    assert found["mean"] == pytest.approx(np.mean(right))
    text = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "Cross-validation" in text and (tmp_path / "run/curve.csv").is_file()


def test_instant_mode_has_folds_already(photo_folder: Path, tmp_path: Path) -> None:
    Recognizer(backbone="test_efficientnet", pretrained=False, size=64, folds=3).fit(photo_folder, tmp_path)
    notes = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    folds = notes["cross_validation"]["folds"]
    right = sum(one["n"] * one["top1"] for one in folds)
    assert len(folds) == 3 and right == pytest.approx(
        notes["out_of_fold"]["top1"] * notes["result"]["n_train"]
    )
    assert "Over 3 folds, top-1 was" in (tmp_path / "report.html").read_text(encoding="utf-8")
