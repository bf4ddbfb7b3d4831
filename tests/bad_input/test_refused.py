"""Bad input with which nothing can be done: one clear line, exit 1, and no model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def nothing(folder: Path, photos: Path) -> Path:
    return folder / "none"


def empty(folder: Path, photos: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def no_photos(folder: Path, photos: Path) -> Path:
    for name in ("a", "b"):
        (folder / "texts" / name).mkdir(parents=True)
        (folder / "texts" / name / "notes.txt").write_text("hello")
    return folder / "texts"


def loose(folder: Path, photos: Path) -> Path:
    return photos / "circle"


def one_class(folder: Path, photos: Path) -> Path:
    for name in ("cross", "square", "triangle"):
        shutil.rmtree(photos / name)
    return photos


def one_class_left(folder: Path, photos: Path) -> Path:
    """Four folders, but only one holds photos that can be read."""
    for photo in photos.rglob("*.jpg"):
        if photo.parent.name != "circle":
            photo.write_text("text")
    return photos


def all_damaged(folder: Path, photos: Path) -> Path:
    for photo in photos.rglob("*.jpg"):
        photo.write_bytes(photo.read_bytes()[:200])
    return photos


def no_label(folder: Path, photos: Path) -> Path:
    (folder / "t.csv").write_text("path,sort\na.jpg,x\n")
    return folder / "t.csv"


def all_in_test(folder: Path, photos: Path) -> Path:
    shutil.move(photos, folder / "split/test")
    return folder / "split"


def no_table(folder: Path, photos: Path) -> Path:
    (folder / "t.parquet").write_text("no parquet")
    return folder / "t.parquet"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (nothing, "no such file or folder"),
        (empty, "no photos in"),
        (no_photos, "no photos in"),
        (loose, "12 photos but no class folders"),
        (one_class, "one class ('circle')"),
        (one_class_left, "one class ('circle')"),
        (all_damaged, "none of the 48 photos can be read"),
        (no_label, "no column label"),
        (all_in_test, "no labelled photos to train on"),
        (no_table, "cannot read"),
    ],
)
def test_one_line_and_no_model(train: Any, photos: Path, tmp_path: Path, make: Any, words: str) -> None:
    out = tmp_path / "run"
    done = train(make(tmp_path, photos), out)
    assert done.status == 1, done.err
    assert words in done.err and done.err.startswith("fieldmark: error: ") and done.err.count("\n") == 1
    assert done.out == "" and not (out / "model").exists()
    assert not out.exists() or not any(out.iterdir()), "the place is free again"


def test_places_that_cannot_be_written(train: Any, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    places = [tmp_path / "file/run"]
    if os.name == "posix":
        places.append(Path("/proc/none/run"))
    if os.name == "posix" and os.geteuid() != 0:  # nothing is forbidden to root
        (tmp_path / "locked").mkdir(mode=0o500)
        places.append(tmp_path / "locked/run")
    for place in places:
        done = train(photos, place)
        assert done.status == 1 and done.err.count("\n") == 1, done.err
        assert "cannot write" in done.err and str(place) in done.err


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_disk_that_is_full(photos: Path, backbone: Path, train: Any, tmp_path: Path) -> None:
    """A real limit on the size of files: the graph does not fit, and nothing of the model stays."""
    train(photos, tmp_path / "warm")  # so that the caches need no room
    code = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "from fieldmark.cli import main; main()"
    )
    out = tmp_path / "run"
    words = ["train", photos, "--out", out, "--backbone", backbone, "--size", 64, "--quiet", "--no-report"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("fieldmark: error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "File too large" in done.stderr
    assert not (out / "model").exists() and not list(out.glob(".*"))
    assert train(photos, out).status == 0, "the place is free again"
