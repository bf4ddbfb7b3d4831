"""Fine-tuning that was killed: resumed, it ends with the same bytes as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed import Killed

from fieldmark.recognizer import Recognizer
from fieldmark.runtime.errors import FieldmarkError, UsageError

#: Quick: random weights and small pictures; ten steps of eight photos.
QUICK: dict[str, Any] = {
    "backbone": "test_efficientnet",
    "pretrained": False,
    "size": 32,
    "epochs": 2,
    "batch": 8,
    "workers": 1,
    "report": False,
}
#: The same as a process of its own; random weights cannot be asked for on the command line.
SCRIPT = """
import json, sys, time
started = time.time()
import torch
torch.set_num_threads(1)
from fieldmark.recognizer import Recognizer

def progress(what, done, total=None, aside=""):
    print(what, done, flush=True)

source, out, options = sys.argv[1:]
recognizer = Recognizer(**json.loads(options)).fit(source, out, progress=progress, started=started)
print(json.dumps(recognizer.run), flush=True)
"""


def fit(source: Path, out: Path, progress: Callable[..., None] = lambda *_: None, **more: Any) -> Recognizer:
    return Recognizer(**{**QUICK, **more}).fit(source, out, progress=progress)


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> tuple[Path, dict[str, Any]]:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, fit(photo_folder, out).run


def test_the_summary(whole: tuple[Path, dict[str, Any]]) -> None:
    out, run = whole
    assert run["mode"] in ("finetune", "instant") and run["resumed_at_step"] is None
    assert run["epochs"] > 1.5 and run["photos_per_second"] > 0 and json.loads(json.dumps(run)) == run
    assert not (out / "checkpoints").exists(), "what a killed run needs is gone"
    assert json.loads((out / "run.json").read_text())["curve"]


def test_the_same_seed_gives_the_same_bytes(
    whole: tuple[Path, dict[str, Any]], photo_folder: Path, tmp_path: Path
) -> None:
    fit(photo_folder, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(whole[0])


@pytest.mark.parametrize("moment", [("training", 1), ("training", 6), ("looking at photos again", None)])
def test_killed_and_resumed(
    whole: tuple[Path, dict[str, Any]], photo_folder: Path, tmp_path: Path, moment: tuple[str, int | None]
) -> None:
    def progress(what: str, done: int, *_: object) -> None:
        if what == moment[0] and moment[1] in (None, done):
            raise Killed

    with pytest.raises(Killed):
        fit(photo_folder, tmp_path / "run", progress)
    assert (tmp_path / "run" / "checkpoints" / "plan.json").is_file()
    run = fit(photo_folder, tmp_path / "run").run
    assert run["resumed_at_step"] == {("training", 1): 0, ("training", 6): 4}.get(
        moment, run["resumed_at_step"]
    )
    assert run["epochs"] == whole[1]["epochs"] and run["top1"] == whole[1]["top1"]
    assert weights(tmp_path / "run") == weights(whole[0])


def test_other_photos_are_one_clear_line(photo_folder: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(photo_folder, photos)

    def progress(what: str, done: int, *_: object) -> None:
        if what == "training":
            raise Killed

    with pytest.raises(Killed):
        fit(photos, tmp_path / "run", progress)
    shutil.move(photos / "circle" / "001.jpg", photos / "square" / "100.jpg")
    with pytest.raises(
        FieldmarkError, match="was begun with other photos, labels, backbone, size or preprocessing"
    ):
        fit(photos, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "plan.json").is_file(), "and nothing is lost"


def test_what_a_killed_fine_tuning_learned_is_not_thrown_away(photo_folder: Path, tmp_path: Path) -> None:
    """By the same command without its --epochs."""

    def progress(what: str, *_: object) -> None:
        if what == "warming up the head":
            raise Killed

    with pytest.raises(Killed):
        fit(photo_folder, tmp_path / "run", progress)
    with pytest.raises(UsageError, match="was begun as fine-tuning: give its --budget or --epochs"):
        Recognizer(**{**QUICK, "epochs": None, "batch": None}).fit(photo_folder, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "plan.json").is_file()


def test_a_full_disk_in_the_midst_of_training(
    whole: tuple[Path, dict[str, Any]], photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fieldmark.train.loop import checkpoint

    out, put = tmp_path / "run", checkpoint._put

    def full(path: Path, data: bytes) -> None:
        if steps.append(path) or len(steps) > 2:  # two files a checkpoint
            raise OSError(28, "No space left on device")
        put(path, data)

    steps: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_put", full)
        with pytest.raises(OSError, match=r"No space left on device: .*checkpoints"):
            fit(photo_folder, out)
    assert fit(photo_folder, out).run["resumed_at_step"] == 0 and weights(out) == weights(whole[0])


def test_a_folder_without_a_checkpoint_starts_afresh(
    whole: tuple[Path, dict[str, Any]], photo_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (out / "checkpoints" / "phase-1").mkdir(parents=True)
    (out / "run.json").write_text("{}")
    run = fit(photo_folder, out).run
    assert run["resumed_at_step"] is None and weights(out) == weights(whole[0])


def test_a_finished_run_is_not_done_again(whole: tuple[Path, dict[str, Any]], photo_folder: Path) -> None:
    from typer.testing import CliRunner

    from fieldmark.cli import app

    before = {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")}
    arguments = ["train", str(photo_folder), "--out", str(whole[0]), "--epochs", "2", "--resume", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == whole[1]
    assert {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")} == before


# -- real processes


def process(source: Path, out: Path, **more: Any) -> subprocess.Popen[str]:
    options = json.dumps({**QUICK, **more})
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(source), str(out), options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def ended(child: subprocess.Popen[str]) -> dict[str, Any]:
    out, error = child.communicate(timeout=600)
    assert child.returncode == 0, error
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("cut", [None, "none"])
def test_sigkill_at_any_moment(photo_folder: Path, tmp_path: Path, cut: str | None) -> None:
    """Killed by the system at moments that it does not choose, and again while it goes on."""
    more = {"epochs": 6, **({} if cut is None else {"cut": cut})}
    ended(process(photo_folder, tmp_path / "whole", **more))
    ended(process(photo_folder, tmp_path / "again", **more))
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
    out, moments = (
        tmp_path / "killed",
        ("warming up", "training 2", "training 9", "training 17", "writing the model"),
    )
    for number, moment in enumerate(moments):
        child = process(photo_folder, out, **more)
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith(moment) or (moment.startswith("training") and _past(line, moment)):
                break
        time.sleep(0.013 * number)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    run = ended(process(photo_folder, out, **more))
    assert run["resumed_at_step"] is not None and run["resumed_at_step"] > 0
    assert weights(out) == weights(tmp_path / "whole")


def _past(line: str, moment: str) -> bool:
    """ "training 12" is past "training 9"."""
    what, _, done = line.strip().rpartition(" ")
    return what == "training" and int(done) >= int(moment.split()[1])


@pytest.mark.slow
def test_a_budget_is_kept(photo_folder: Path, tmp_path: Path) -> None:
    """From the start of the process to the model on the disk, at most a twentieth over."""
    run = ended(process(photo_folder, tmp_path / "run", epochs=None, budget=25, batch=None))
    assert run["seconds"] <= 25 * 1.05
    told = json.loads((tmp_path / "run" / "run.json").read_text())["chosen"]
    assert told["stopped"] in ("done", "the budget is spent") and run["epochs"] > 1.5
