"""A model folder is read whole or refused in a line, and written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import CLASSES, write_bundle

from fieldmark.runtime.bundle import CARD, FILES, Bundle
from fieldmark.runtime.bundle_files import building, seal
from fieldmark.runtime.errors import FieldmarkError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "model", method="plain")


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(FieldmarkError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(model: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    raw = json.loads((model / "config.json").read_text(encoding="utf-8"))
    change(raw)
    (model / "config.json").write_text(json.dumps(raw), encoding="utf-8")


# -- reading


def test_a_whole_model(model):
    bundle = Bundle(model)
    bundle.verify()
    assert bundle.classes == list(CLASSES), "commas, quotes, newlines and emoji survive"
    assert set(bundle.section.files) == {path.name for path in model.iterdir()} - {"config.json", CARD}
    assert set(bundle.section.files) < set(FILES)
    assert bundle.splits() == {"aa": "train", "bb": "test"}
    assert bundle.golden()["images"].dtype == np.uint8
    assert bundle.arrays("model.safetensors")["head.bias"].shape == (3,)
    assert bundle.metrics() == {}
    for name, digest in bundle.section.files.items():
        assert hashlib.sha256((model / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(
    ("place", "value", "same"),
    [
        (("classes",), ["x", "y", "z"], False),
        (("decision", "temperature"), 3.0, False),
        (("preprocess", "resize"), "crop", False),
        (("files", "model.onnx"), "0" * 64, False),
        (("training",), {"note": "mine"}, True),
        (("files", "split.parquet"), "0" * 64, True),
    ],
)
def test_the_key_names_what_it_answers(model, place, value, same):
    before = Bundle(model).key
    assert len(before) == 12 and before == Bundle(model).key

    def change(raw: dict[str, Any]) -> None:
        here = raw["fieldmark"]
        for name in place[:-1]:
            here = here[name]
        assert here.get(place[-1]) != value
        here[place[-1]] = value

    edit(model, change)
    assert (Bundle(model).key == before) is same


def test_the_config_is_timms_too(model):
    """Other tools find the network by timm's keys."""
    raw = json.loads((model / "config.json").read_text(encoding="utf-8"))
    assert raw["architecture"] == "test_efficientnet" and raw["num_classes"] == 3
    assert raw["pretrained_cfg"]["label_names"] == list(CLASSES)


@pytest.mark.parametrize("name", [name for name in FILES if name != "stats.safetensors"])
class TestEachFile:
    def test_damaged(self, model, name):
        path = model / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1  # one bit
        path.write_bytes(data)
        assert name in refused(lambda: Bundle(model).file(name))
        assert "damaged" in refused(Bundle(model).verify)

    def test_cut(self, model, name):
        path = model / name
        path.write_bytes(path.read_bytes()[:-1])
        assert "damaged" in refused(Bundle(model).verify)

    def test_missing(self, model, name):
        (model / name).unlink()
        assert name in refused(Bundle(model).verify)

    def test_a_folder_instead(self, model, name):
        (model / name).unlink()
        (model / name).mkdir()
        assert name in refused(Bundle(model).verify)


def test_a_file_that_was_never_part_of_it(model):
    assert "saved without it" in refused(lambda: Bundle(model).file("stats.safetensors"))
    (model / "stats.safetensors").write_bytes(b"smuggled in")
    assert "saved without it" in refused(lambda: Bundle(model).arrays("stats.safetensors"))


def test_strangers_beside_it_are_left_alone(model):
    (model / "notes.txt").write_text("mine")
    (model / ".git").mkdir()
    Bundle(model).verify()


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "cannot read"),
        (b"[" * 100_000, "not JSON"),
        (b"[1, 2]", "not written by fieldmark"),
        (b'"format"', "not written by fieldmark"),
        (b'{"architecture": "resnet50", "num_classes": 1000}', "not written by fieldmark"),
        (b'{"format": 1}', "not written by fieldmark"),
        (b'{"format": 2, "fieldmark": {}}', "update fieldmark"),
        (b'{"format": 0, "fieldmark": {}}', "train it again"),
        (b'{"format": "1", "fieldmark": {}}', "format 1"),
        (b'{"format": 1, "fieldmark": {}}', "damaged"),
        (b'{"format": 1, "fieldmark": []}', "damaged"),
    ],
)
def test_configs_that_are_none(model, content, says):
    (model / "config.json").write_bytes(content)
    assert says in refused(lambda: Bundle(model))


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda raw: raw.pop("architecture"), "architecture"),
        (lambda raw: raw.update(num_classes="many"), "num_classes"),
        (lambda raw: raw.update(num_classes=4), "4 classes, but 3 names"),
        (lambda raw: raw["fieldmark"].update(classes=[]), "classes"),
        (lambda raw: raw["fieldmark"].update(classes=["a", "b", "a"]), "twice"),
        (lambda raw: raw["fieldmark"]["decision"].update(temperature=0), "temperature"),
        (lambda raw: raw["fieldmark"]["decision"].update(temperature=float("inf")), "temperature"),
        (lambda raw: raw["fieldmark"]["decision"].update(temperature=float("nan")), "temperature"),
        (lambda raw: raw["fieldmark"]["preprocess"].update(size=0), "size"),
        (lambda raw: raw["fieldmark"]["preprocess"].update(std=[0, 0, 0]), "std"),
        (lambda raw: raw["fieldmark"].update(unknown_key=1), "unknown_key"),
    ],
)
def test_configs_that_say_nonsense(model, change, says):
    edit(model, change)
    assert says in refused(lambda: Bundle(model))


@pytest.mark.parametrize(
    "name",
    ["../secret.txt", "/etc/passwd", "..\\secret.txt", "sub/model.onnx", "config.json", "model.pkl", ""],
)
def test_names_that_lead_elsewhere(model, name):
    """A config may name no file outside the format, so none outside the folder."""
    (model.parent / "secret.txt").write_text("secret")
    edit(model, lambda raw: raw["fieldmark"]["files"].update({name: "0" * 64}))
    assert "no part of the format" in refused(lambda: Bundle(model))


def test_no_model_at_all(tmp_path):
    assert "no model at" in refused(lambda: Bundle(tmp_path / "nothing"))
    assert "no config.json" in refused(lambda: Bundle(tmp_path))
    (tmp_path / "file").touch()
    assert "no model at" in refused(lambda: Bundle(tmp_path / "file"))
    (tmp_path / "odd/config.json").mkdir(parents=True)
    assert "cannot read" in refused(lambda: Bundle(tmp_path / "odd"))


def test_right_hashes_of_wrong_content(model):
    """Someone else may seal a model, too. A pickle among the golden answers is not opened."""
    np.savez(model / "golden.npz", images=np.array([{"a": 1}], object))
    for name in ("split.parquet", "model.safetensors", "metrics.json"):
        (model / name).write_text("nonsense")
    bundle = Bundle(model)
    bundle.config = seal(model, bundle.config)
    assert "allow_pickle" in refused(bundle.golden)
    for call in (bundle.splits, bundle.metrics, lambda: bundle.arrays("model.safetensors")):
        assert "cannot be read" in refused(call)


# -- writing


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
