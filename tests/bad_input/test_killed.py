"""Killed in the middle: no half model is left, and the next run does what is to be done."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import call

from fieldmark.runtime.bundle import Bundle

KILLED = """
import os
import fieldmark.{module} as module
module.{stage} = lambda *_, **__: os.kill(os.getpid(), 9)
from fieldmark.cli import main
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_killed_in_the_middle(train: Any, backbone: Path, photos: Path, tmp_path: Path, flag: str) -> None:
    out = tmp_path / "run"
    words = ["train", photos, "--out", out, "--backbone", backbone, "--size", 64, "--no-report"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED.format(module="train.bundle.write", stage="write_splits"),
            *map(str, words),
        ],
        capture_output=True,
        check=False,
    )
    assert done.returncode == -9
    assert not (out / "model").exists(), "no half model"
    assert list(out.glob(".model-*")), "it was killed while it wrote one"
    assert call("predict", out / "model", photos / "cross").status == 1
    refused = train(photos, out)
    assert refused.status == 2 and "exists already" in refused.err
    done = train(photos, out, flag)
    assert done.status == 0, done.err
    assert not list(out.glob(".model-*")) and not list(tmp_path.glob(".run*")), "nothing is left of the first"
    Bundle(out / "model").verify()
    again = train(photos, out, "--resume")
    assert again.json == done.json, "a run that is finished is not done again"


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_killed_after_the_model_was_written(train: Any, backbone: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["train", photos, "--out", out, "--backbone", backbone, "--size", 64, "--no-report"]
    code = KILLED.format(module="run", stage="write_skipped")
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, check=False)
    assert done.returncode == -9
    Bundle(out / "model").verify()
    assert call("predict", out, photos / "cross", "--json").status == 0, "what is there is whole"
    assert train(photos, out).status == 2
    done = train(photos, out, "--resume")
    assert done.status == 0 and (out / "skipped.csv").is_file()


def test_seconds_count_from_the_start_of_the_process(backbone: Path, photos: Path, tmp_path: Path) -> None:
    code = "import time; time.sleep(1)\nfrom fieldmark.cli import main; main()"
    words = ["train", photos, "--out", tmp_path / "run", "--backbone", backbone, "--size", 64, "--json"]
    begun = time.time()
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, check=True)
    seconds = json.loads(done.stdout.splitlines()[-1])["seconds"]
    assert (1 if sys.platform == "linux" else 0) < seconds < time.time() - begun


def test_a_failed_overwrite_leaves_the_old_run(train: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = train(photos, out)
    assert first.status == 0
    before = (out / "model/config.json").read_bytes()
    assert train(tmp_path / "none", out, "--overwrite").status == 1
    assert (out / "model/config.json").read_bytes() == before
    assert train(photos, out, "--resume").json == first.json
    shutil.rmtree(photos / "cross")
    assert train(photos, out, "--overwrite").status == 0
    assert Bundle(out / "model").classes == ["circle", "square", "triangle"]
