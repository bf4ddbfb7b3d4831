"""Two processes that are stopped, by Ctrl-C, which they see at different steps, or by a kill, and two whose disks
differ."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from torchrun import torchrun

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")

#: Quick: random weights and small pictures; steps of eight photos.
QUICK: dict[str, Any] = {
    "backbone": "test_efficientnet",
    "pretrained": False,
    "size": 32,
    "epochs": 2,
    "batch": 8,
    "workers": 1,
    "report": False,
    "floor": False,
}
SCRIPT = """
import json, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import torch
torch.set_num_threads(1)
from fieldmark.recognizer import Recognizer
from fieldmark.train.loop.loop import Loop
from fieldmark.train.tuning import tuner

source, out, options, how = sys.argv[1:]
rank, between = os.environ["RANK"], Loop._between

def after(loop):
    if loop.step == 3 and how == "one" and rank == "1":
        signal.raise_signal(signal.SIGINT)
    if loop.step == 3 and how == "all" and rank == "0":
        os.kill(os.getppid(), signal.SIGINT)
    if loop.step == 6 and how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return between(loop)

def progress(what, *_):
    if how and what == how and rank == "1":
        signal.raise_signal(signal.SIGINT)

Loop._between = after
if rank == "1":
    tuner.finished = None  # one makes the model
    out += "-of-its-own" * (how == "nodes")
recognizer = Recognizer(**json.loads(options)).fit(source, out, progress=progress)
if rank == "0":
    print(json.dumps(recognizer.run), flush=True)
"""


def two(photos: Path, out: Path, how: str = "", **more: Any) -> tuple[int, dict[str, Any]]:
    """Their status, and what the one that writes says."""
    script = out.with_suffix(".py")
    script.write_text(SCRIPT, encoding="utf-8")
    done = torchrun(2, str(script), str(photos), str(out), json.dumps(QUICK | more), how, seconds=90)
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert answers or how == "kill", done.stderr[-3000:]
    return done.returncode, json.loads(answers[0]) if answers else {}


def stopped(out: Path) -> str:
    return json.loads((out / "run.json").read_text(encoding="utf-8"))["chosen"]["stopped"]


@pytest.mark.parametrize("how", ["one", "all"])
def test_ctrl_c_ends_all_at_the_same_step(photo_folder: Path, tmp_path: Path, how: str) -> None:
    """Also where it reaches one of them only, which may not let the other wait."""
    status, told = two(photo_folder, tmp_path / "run", how, epochs=10_000)
    assert (status == 0) == (how == "one"), "torchrun itself was interrupted, too"
    assert told["mode"] == "finetune" and stopped(tmp_path / "run") == "interrupted"
    assert 0 < told["epochs"] < 5_000 and (tmp_path / "run/model/config.json").is_file()


@pytest.mark.parametrize("how", ["warming up the head", "making maps"])
def test_ctrl_c_before_the_first_step(photo_folder: Path, tmp_path: Path, how: str) -> None:
    status, told = two(photo_folder, tmp_path / "run", how, views="kept")
    assert status == 0 and told["mode"] == "instant" and stopped(tmp_path / "run") == "interrupted"


def test_killed_and_resumed(photo_folder: Path, tmp_path: Path) -> None:
    """They end with the same bytes as two that were not killed."""
    status, whole = two(photo_folder, tmp_path / "whole")
    assert status == 0 and whole["resumed_at_step"] is None
    status, told = two(photo_folder, tmp_path / "killed", "kill")
    assert status != 0 and not told and not (tmp_path / "killed/model").exists()
    status, resumed = two(photo_folder, tmp_path / "killed")
    assert status == 0 and resumed["resumed_at_step"] == 4 and resumed["epochs"] == whole["epochs"]
    one, other = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert one == other


def test_two_nodes_that_share_no_folder(photo_folder: Path, tmp_path: Path) -> None:
    """Both train by the plan of the first, and it alone keeps the folds."""
    status, told = two(photo_folder, tmp_path / "run", "nodes", epochs=1, folds=2)
    assert status == 0 and told["mode"] == "finetune" and told["epochs"] > 0.5
    notes = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))
    assert [one["mode"] for one in notes["cross_validation"]["folds"]] == ["finetune"] * 2
    assert not list(tmp_path.glob("*own/**/result.json")), "the second has kept none"
