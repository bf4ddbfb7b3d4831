"""A model folder is written whole or not at all, and nothing of its owner's is lost."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import refused

from fieldmark.runtime.bundle import CARD, Bundle
from fieldmark.runtime.bundle_files import building, seal
from fieldmark.runtime.errors import FieldmarkError


def fill(folder: Path, text: str = "new") -> None:
    (folder / "config.json").write_text(json.dumps({"fieldmark": text}))
    (folder / "model.onnx").write_text(text)


def test_building_makes_a_folder_in_one_step(tmp_path):
    target = tmp_path / "deep/er/model"
    with building(target) as folder:
        fill(folder)
        assert not target.exists() and folder.parent == target.parent
    assert (target / "model.onnx").read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_building_replaces_a_model(tmp_path):
    for text in ("old", "new"):
        with building(tmp_path / "model") as folder:
            fill(folder, text)
            if text == "old":
                (folder / "stats.safetensors").touch()
                (folder / CARD).touch()
            else:
                assert (tmp_path / "model/model.onnx").read_text() == "old", "it serves until the end"
    assert (tmp_path / "model/model.onnx").read_text() == "new"
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_building_in_the_folder_one_is_in(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    fill(Path(), "old")
    with building(".") as folder:
        fill(folder)
    monkeypatch.chdir(tmp_path)
    assert (tmp_path / "model/model.onnx").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_building_leaves_strangers_alone(tmp_path):
    """A model folder may be a repository, with a licence and notes of its owner."""
    model = tmp_path / "model"
    (model / ".git/refs").mkdir(parents=True)
    fill(model, "old")
    (model / ".git/refs/main").write_text("1")
    (model / "LICENSE").write_text("mine")
    with building(model) as folder:
        fill(folder)
        (folder / "LICENSE").write_text("its own")
        assert (model / ".git/refs/main").exists()
    assert (model / "model.onnx").read_text() == "new" and (model / ".git/refs/main").read_text() == "1"
    assert (model / "LICENSE").read_text() == "its own"
    with pytest.raises(RuntimeError), building(model):
        raise RuntimeError
    assert (model / ".git/refs/main").read_text() == "1"


def test_a_stranger_that_cannot_be_moved_is_not_deleted(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    fill(tmp_path / "model", "old")
    (tmp_path / "model/notes.txt").write_text("mine")
    rename = Path.rename

    def stubborn(self: Path, target: Path) -> Path:
        if self.name == "notes.txt":
            raise OSError(errno.EBUSY, "busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stubborn)
    with (
        pytest.raises(FieldmarkError, match=r"notes\.txt could not be moved") as caught,
        building(tmp_path / "model") as folder,
    ):
        fill(folder)
    assert (Path(str(caught.value).rsplit(" is in ", 1)[1]) / "notes.txt").read_text() == "mine"
    assert (tmp_path / "model/model.onnx").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.EIO, "I/O error")])
@pytest.mark.parametrize("before", [True, False])
def test_an_error_leaves_nothing_new(tmp_path, error, before):
    if before:
        (tmp_path / "model").mkdir()
        fill(tmp_path / "model", "old")
    with pytest.raises(type(error)), building(tmp_path / "model") as folder:
        fill(folder)
        raise error
    assert [path.name for path in tmp_path.iterdir()] == (["model"] if before else [])
    assert not before or (tmp_path / "model/model.onnx").read_text() == "old"


@pytest.mark.parametrize("before", [True, False])
def test_a_full_disk(tmp_path, monkeypatch, before):
    if before:
        (tmp_path / "model").mkdir()
        fill(tmp_path / "model", "old")

    def full(path: Path, *_: Any, **__: Any) -> None:
        with path.open("wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with (
        pytest.raises(FieldmarkError, match="the disk is full") as caught,
        building(tmp_path / "model") as folder,
    ):
        fill(folder)
        (folder / "model.safetensors").write_bytes(b"whole")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == (["model"] if before else [])
    assert not before or (tmp_path / "model/model.onnx").read_text() == "old"


def test_no_room_for_the_config(model, monkeypatch):
    """The last file is the one that makes it a model."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config, target = Bundle(model).config, model.with_name("copy")
    monkeypatch.setattr("fieldmark.runtime.bundle_files.os.fsync", full)
    with pytest.raises(FieldmarkError, match="disk is full"), building(target) as folder:
        shutil.copyfile(model / "model.onnx", folder / "model.onnx")
        seal(folder, config)
    assert [path.name for path in model.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_no_permission(tmp_path, monkeypatch, number):
    def denied(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", denied)
    message = refused(lambda: building(tmp_path / "model").__enter__())
    assert "cannot write" in message and os.strerror(number) in message


def test_the_old_model_comes_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    fill(tmp_path / "model", "old")
    rename = Path.rename

    def stubborn(self: Path, target: Path) -> Path:
        if target.name == "model" and (self / "new").exists():
            raise OSError(errno.EBUSY, "busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stubborn)
    with pytest.raises(OSError, match="busy"), building(tmp_path / "model") as folder:
        (folder / "new").touch()
    assert (tmp_path / "model/model.onnx").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_model_is_not_replaced(tmp_path):
    """``save`` into a folder of photos must not empty it."""
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "a.jpg").touch()
    (precious / "config.json").write_text('{"name": "something else"}')
    (tmp_path / "file").write_text("text")
    for place in (precious, tmp_path / "file"):
        assert "no model folder" in refused(lambda place=place: building(place).__enter__())
    assert (precious / "a.jpg").exists() and (tmp_path / "file").read_text() == "text"
    (tmp_path / "empty").mkdir()
    with building(tmp_path / "empty") as folder:
        fill(folder)
    assert (tmp_path / "empty/model.onnx").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_keeps_pointing(tmp_path):
    (tmp_path / "store").mkdir()
    fill(tmp_path / "store", "old")
    (tmp_path / "model").symlink_to(tmp_path / "store")
    with building(tmp_path / "model") as folder:
        fill(folder)
    assert (tmp_path / "model").is_symlink() and (tmp_path / "store/model.onnx").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "store"]


def test_seal_hashes_what_stands_there(tmp_path, model):
    config = Bundle(model).config
    with building(tmp_path / "other") as folder:
        (folder / "model.onnx").write_bytes(b"graph")
        (folder / "stranger.txt").write_text("not of the format")
        sealed = seal(folder, config)
    assert sealed.fieldmark.files == {"model.onnx": hashlib.sha256(b"graph").hexdigest()}
    assert Bundle(tmp_path / "other").config == sealed
