"""Two processes train one model: torchrun on the CPU."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrun import torchrun

from fieldmark.runtime.errors import UsageError
from fieldmark.train import processes


def test_alone_is_the_first_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (processes.rank(), processes.world(), processes.main()) == (0, 1, True)


def test_the_environment_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert (processes.rank(), processes.world(), processes.main()) == (1, 3, False)


def test_one_training_after_another_in_one_process() -> None:
    """Each with its own precision."""
    gpu = torch.cuda.is_available()
    fast = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    automatic = "bf16" if fast else "fp16" if gpu else "no"
    for amp in ("bf16", "no", "auto"):
        assert processes.accelerator(amp).mixed_precision == (automatic if amp == "auto" else amp)
    if not gpu:
        with pytest.raises(UsageError, match="--amp fp16 needs a GPU"):
            processes.accelerator("fp16")


def _train(photos: Path, out: Path, count: int, *more: str, long: str = "--epochs 2") -> dict[str, Any]:
    """`fieldmark train` with so many processes."""
    flags = [
        *more,
        *long.split(),
        "--batch",
        "8",
        "--size",
        "64",
        "--train-size",
        "64",
        "--json",
        "--quiet",
    ]
    done = torchrun(count, "-m", "fieldmark", "train", str(photos), "--out", str(out), *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(answers) == 1, "one process speaks"
    return json.loads(answers[0])


def test_two_processes_train_what_one_trains(photo_folder: Path, tmp_path: Path) -> None:
    one, two = (_train(photo_folder, tmp_path / str(count), count, "--no-floor") for count in (1, 2))
    assert one["mode"] == two["mode"] == "finetune"
    for name in ("n_train", "n_test", "epochs", "skipped"):
        assert one[name] == two[name]
    assert abs(one["top1"] - two["top1"]) <= 1 / one["n_test"]
    assert sorted(p.name for p in (tmp_path / "1").iterdir()) == sorted(
        p.name for p in (tmp_path / "2").iterdir()
    )
    curves = [list(csv.DictReader((tmp_path / name / "curve.csv").open())) for name in ("1", "2")]
    assert [row["step"] for row in curves[0]] == [row["step"] for row in curves[1]]
    # Each held-out photo is counted once, and a step is that of all its photos: gradients that are not averaged take
    # this apart by 0.05.
    losses = [[float(row["held_out_loss"]) for row in rows] for rows in curves]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


@pytest.mark.parametrize("method", ["pim", "wsdan", "pmg", "api_net", "pipnet"])
def test_methods_train_in_two_processes(method: str, photo_folder: Path, tmp_path: Path) -> None:
    """Selected places, crops and centres, four steps a batch, pairs, views that differ in colour."""
    told = _train(photo_folder, tmp_path / "run", 2, "--method", method, "--no-floor", "--no-report")
    assert told["mode"] == "finetune" and told["epochs"] > 1.5  # pairs leave a short batch out
    rows = list(csv.DictReader((tmp_path / "run/curve.csv").open()))
    assert all(float(row["train_loss"]) == float(row["train_loss"]) for row in rows if row["train_loss"])


def test_two_processes_keep_to_a_budget(photo_folder: Path, tmp_path: Path) -> None:
    """Their clocks differ, and they end at the same step."""
    told = _train(photo_folder, tmp_path / "two", 2, "--no-floor", long="--budget 40s")
    if told["mode"] == "instant":
        pytest.skip("the machine is too slow for this budget")
    assert told["epochs"] > 1 and told["seconds"] < 60
