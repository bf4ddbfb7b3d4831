"""A model folder is read whole or refused in a line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import CLASSES, refused

from fieldmark.runtime.bundle import CARD, FILES, Bundle
from fieldmark.runtime.bundle_files import seal


def edit(model: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    raw = json.loads((model / "config.json").read_text(encoding="utf-8"))
    change(raw)
    (model / "config.json").write_text(json.dumps(raw), encoding="utf-8")


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
