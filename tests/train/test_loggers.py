"""Loggers: what TensorBoard reads back, what MLflow is told, and that none of them ends a training."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from fieldmark.runtime.errors import FieldmarkError, UsageError
from fieldmark.train import loggers
from fieldmark.train.recipe import Recipe, divide

ROW = {
    "phase": 0,
    "step": 2,
    "epoch": 1.0,
    "held_out_accuracy": 0.5,
    "held_out_loss": 1.25,
    "train_loss": 9.0,
}


class Spy:
    def __init__(self, fails: bool = False) -> None:
        self.calls: list[Any] = []
        self.fails = fails

    def step(self, step: int, values: Any) -> None:
        self.calls.append((step, dict(values)))
        if self.fails:
            raise OSError("no\nroom")

    def evaluation(self, row: Any) -> None:
        self.calls.append(dict(row))

    def close(self, done: bool = True) -> None:
        self.calls.append(done)


def test_unknown_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no logger is called 'wandb'; there are: tensorboard, mlflow"):
        loggers.check(["wandb"])
    monkeypatch.setattr(loggers.util, "find_spec", lambda name: None)
    with pytest.raises(FieldmarkError, match=r"pip install 'fieldmark\[mlflow\]'"):
        Recipe.of({"epochs": 1, "log": ["mlflow"]})


def test_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers.util, "find_spec", lambda name: object())
    assert Recipe.of({"epochs": 1, "log": "tensorboard"}).log == ("tensorboard",)
    settings, recipe = divide({"mode": "finetune", "epochs": 1, "folds": 3, "log": ["mlflow"]})
    assert recipe is not None and (settings.folds, recipe.folds, recipe.log) == (3, 3, ("mlflow",))
    settings, recipe = divide({"folds": 4})
    assert recipe is None and settings.folds == 4
    assert Recipe.of({"epochs": 1}).folds is None, "no cross-validation unless asked for"
    with pytest.raises(UsageError, match="--log belongs to fine-tuning"):
        divide({"log": ["mlflow"]})


def test_a_logger_that_fails_is_left_out() -> None:
    notes: list[str] = []
    good, bad = Spy(), Spy(fails=True)
    both = loggers.Several({"bad": bad, "good": good}, notes.append)
    both.step(1, {"loss": 2.0})
    both.step(2, {"loss": 1.0})
    both.evaluation(ROW)
    both.close()
    assert len(bad.calls) == 1 and good.calls == [(1, {"loss": 2.0}), (2, {"loss": 1.0}), ROW, True]
    assert notes == ["bad cannot be told more (OSError: no room): training goes on without it"]


def test_tensorboard_reads_back_what_was_told(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start, end in ((1, 6), (4, 9)):  # killed after step 5, resumed from step 3
        with loggers.opened(["tensorboard"], tmp_path, {}, print) as logger:
            for step in range(start, end):
                logger.step(step, {"loss": 1 / step + (start > 1), "lr": 0.1})
            logger.evaluation(ROW | {"step": end - 1})
    found = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"train/loss", "train/lr", "held_out/accuracy", "held_out/loss"}
    told = [(event.step, event.value) for event in found.Scalars("train/loss")]
    expected = [(step, 1 / step + (step > 3)) for step in range(1, 9)]
    assert [step for step, _ in told] == [step for step, _ in expected]
    assert [value for _, value in told] == pytest.approx([value for _, value in expected])
    assert [event.value for event in found.Scalars("held_out/loss")] == [1.25]


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for MLflow that notes what it is told, by its own calls and names of arguments."""
    told: dict[str, Any] = {"runs": [], "metrics": [], "params": {}, "status": []}

    class Client:
        def get_experiment_by_name(self, name: str) -> Any:
            return None

        def create_experiment(self, name: str) -> str:
            if told.get("down"):
                raise ConnectionError("nobody\nis there")
            return f"experiment {name}"

        def create_run(self, experiment_id: str, run_name: str) -> Any:
            told["runs"].append((experiment_id, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"run {len(told['runs'])}"))

        def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
            told["metrics"] += [(run_id, *one) for one in metrics]
            told["params"] |= dict(params)

        def update_run(self, run_id: str, status: str) -> None:
            told["status"].append((run_id, status))

        def set_terminated(self, run_id: str, status: str) -> None:
            told["status"].append((run_id, status))

    entities = types.ModuleType("mlflow.entities")
    entities.Metric = lambda key, value, timestamp, step: (key, value, step)  # type: ignore[attr-defined]
    entities.Param = lambda key, value: (key, value)  # type: ignore[attr-defined]
    tracking = types.ModuleType("mlflow.tracking")
    tracking.MlflowClient = Client  # type: ignore[attr-defined]
    for name, module in (("", types.ModuleType("mlflow")), (".entities", entities), (".tracking", tracking)):
        monkeypatch.setitem(sys.modules, f"mlflow{name}", module)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return told


def test_mlflow(mlflow: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "birds"
    settings = {"lr": 0.1, "cut": None, "backbone": "x"}
    with loggers.opened(["mlflow"], out, settings, print) as logger:
        logger.step(1, {"loss": 2.0, "accuracy": float("nan")})
        assert not mlflow["metrics"], "steps are sent together"
        logger.evaluation(ROW)
    assert mlflow["runs"] == [("experiment fieldmark", "birds")]
    assert mlflow["params"] == {"lr": "0.1", "backbone": "x"}
    assert mlflow["metrics"] == [
        ("run 1", "train/loss", 2.0, 1),
        ("run 1", "held_out/accuracy", 0.5, 2),
        ("run 1", "held_out/loss", 1.25, 2),
    ]
    assert mlflow["status"] == [("run 1", "FINISHED")]
    with (
        pytest.raises(KeyboardInterrupt),
        loggers.opened(["mlflow"], out, settings, print) as logger,
    ):
        logger.step(2, {"loss": 1.0})
        raise KeyboardInterrupt
    assert mlflow["metrics"][-1] == ("run 1", "train/loss", 1.0, 2), "the same run goes on"
    assert mlflow["status"][1:] == [("run 1", "RUNNING"), ("run 1", "FAILED")]
    with loggers.opened(["mlflow"], out, settings, print, "fold-2"):
        assert mlflow["runs"][-1][1] == "birds fold-2"
    assert json.loads((out / "checkpoints/fold-2/mlflow.json").read_text()) == {"run": "run 2"}


def test_mlflow_that_cannot_be_reached(mlflow: dict[str, Any], tmp_path: Path) -> None:
    mlflow["down"] = True
    with (
        pytest.raises(FieldmarkError, match=r"ConnectionError: nobody is there\): name a server"),
        loggers.opened(["mlflow"], tmp_path, {}, print),
    ):
        pass
