"""``cache``, ``doctor``, ``methods``, ``backbones``, ``datasets``, ``compare``."""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fieldmark import methods
from fieldmark.cli import doctor as doctor_module
from fieldmark.methods.measured import Measured
from fieldmark.runtime import cache


def test_cache(fieldmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "cache"))
    assert fieldmark("cache", "--json").json["bytes"] == 0
    (cache.directory("features") / "a").write_bytes(b"x" * 2500)
    (cache.directory("weights") / "w").write_bytes(b"x" * 10)
    shown = fieldmark("cache")
    assert "2.5 kB" in shown.out and "10 bytes" in shown.out
    assert fieldmark("cache", "features", "--json").json["caches"] == {
        "features": {"files": 1, "bytes": 2500}
    }
    assert fieldmark("cache", "nothing").status == 2
    assert fieldmark("cache", "nothing", "--clear").status == 2
    assert fieldmark("cache", "features", "--clear", "--json").json["removed"] == 2500
    assert fieldmark("cache", "--json").json["bytes"] == 10
    assert fieldmark("cache", "--clear", "--json").json["removed"] == 10


def test_doctor_finds_this_machine_well(fieldmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_torch", lambda: {"works": True, "note": "", "gpu": None})
    done = fieldmark("doctor", "--json")
    assert done.status == 0
    found = done.json
    assert found["predicts"] and found["cores"] >= 1 and found["memory_bytes"] > 0
    assert found["engines"]["onnxruntime"]["works"] and found["hub"] is None
    assert found["versions"]["numpy"]


def test_doctor_says_what_to_do(fieldmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"works": False, "note": "not installed"}
    monkeypatch.setattr(doctor_module, "_openvino", lambda: broken)
    monkeypatch.setattr(doctor_module, "_onnxruntime", lambda: broken)
    monkeypatch.setattr(doctor_module, "_version", lambda name: None if name == "torch" else "1")
    monkeypatch.setattr(doctor_module, "_torch", lambda: {"works": True, "note": "", "gpu": None})
    monkeypatch.setattr(doctor_module, "_room", lambda path: 10**8)
    monkeypatch.setattr(doctor_module, "_writable", lambda path: False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    done = fieldmark("doctor", "--online")
    assert done.status == 1
    for words in ("fieldmark[train]", "no engine runs", "0.1 GB of disk", "cannot be written", "HF_ENDPOINT"):
        assert words in done.out


def test_methods(fieldmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its year and idea; where it was measured, what it costs on average and its points on each set."""
    nothing = dict.fromkeys(Measured._fields)
    rows = [
        Measured(**nothing | {"set": "birds", "budget": "60s", "delta": 1.5, "training": 2.0, "answer": 1.0}),
        Measured(**nothing | {"set": "bees", "budget": "3m", "delta": -0.25, "training": 4.0}),
        Measured(**nothing | {"set": "ants", "budget": "3m"}),  # nothing could be trained in that time
    ]
    monkeypatch.setattr("fieldmark.methods.measured.of", lambda name: rows if name == "isqrt_cov" else [])
    text, found = fieldmark("methods").out.splitlines(), fieldmark("methods", "--json").json
    assert found["default"] == methods.DEFAULT_METHOD
    assert [one["name"] for one in found["methods"]] == [card.name for card in methods.cards()]
    for card, one in zip(methods.cards(), found["methods"], strict=True):
        known, mine = card.name == "isqrt_cov", card.name == methods.DEFAULT_METHOD
        assert (one["year"], one["idea"], one["default"]) == (card.year, card.idea, mine)
        assert (one["training_cost"], one["answer_cost"]) == ((3.0, 1.0) if known else (None, None))
        assert one["measured"] == ([row._asdict() for row in rows] if known else [])
        (at,) = [n for n, line in enumerate(text) if line.split()[:1] == [card.name]]
        assert text[at].split(maxsplit=2 + mine)[1 + mine :] == [str(card.year), card.idea]
        if known:
            assert text[at + 1].strip() == "training x3.0, answer x1.0, birds (60s) +1.5, bees (3m) -0.2"


def test_backbones_without_timm(fieldmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of what is installed needs no import that takes seconds."""
    monkeypatch.setitem(sys.modules, "timm", None)
    names = [one["backbone"] for one in fieldmark("backbones", "--json").json["backbones"]]
    assert names[0] == "tf_efficientnet_lite0"
    assert fieldmark("backbones", "vit_*").status == 1, "timm is asked for patterns only"


def test_backbones_by_pattern(fieldmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["resnet50.a1_in1k", "resnet50.a2_in1k", "tf_efficientnet_lite0.in1k"]
    timm = SimpleNamespace(
        list_models=lambda pattern, pretrained: fnmatch.filter(names, pattern) if pretrained else [],
        get_pretrained_cfg=lambda name: SimpleNamespace(input_size=(3, 224, 224)),
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path))
    (cache.directory("weights") / "resnet50.a2_in1k.safetensors").touch()
    found = fieldmark("backbones", "resnet*", "--json").json["backbones"]
    assert [one["weights"] for one in found] == ["model hub", "cached"]
    assert fieldmark("backbones", "*lite0*", "--json").json["backbones"][0]["weights"] == "installed"
    nothing = fieldmark("backbones", "squid", "--json")
    assert nothing.json["backbones"] == [] and "squid" in nothing.err


def test_datasets(fieldmark: Any, tmp_path: Path) -> None:
    names = [one["name"] for one in fieldmark("datasets", "--json").json["datasets"]]
    assert names == ["look-alikes", "digits", "mnist", "fashion-mnist", "cifar10", "cifar100"]
    assert "170 MB" in fieldmark("datasets").out
    assert fieldmark("datasets", "mnist", "--json").json["options"] == {"source": "", "per_class": 0}
    gone = fieldmark("datasets", "mnist", "--out", tmp_path / "x", "--with", f"source={tmp_path}")
    assert gone.status == 2 and "no train-images-idx3-ubyte" in gone.err and gone.err.count("\n") == 1
    assert fieldmark("datasets", "look-alikes", "--json").json["options"]["size"] == 256
    for words in (
        ["lookalike"],
        ["--out", tmp_path / "x"],
        ["look-alikes", "--with", "size=64"],
        ["look-alikes", "--out", tmp_path / "x", "--with", "size=big"],
        ["look-alikes", "--out", tmp_path / "x", "--with", "shortcut=perhaps"],
        ["look-alikes", "--out", tmp_path / "x", "--with", "colour=red"],
    ):
        assert fieldmark("datasets", *words).status == 2, words
    assert not (tmp_path / "x").exists()
    small = [f"--with={item}" for item in ("n_species=3", "per_species=2", "size=64", "unknown=0")]
    done = fieldmark("datasets", "look-alikes", "--out", tmp_path / "x", *small, "--json")
    assert done.status == 0, done.err
    assert len(list((tmp_path / "x").rglob("*.jpg"))) == 6
    assert fieldmark("datasets", "look-alikes", "--out", tmp_path / "x", *small).status == 2


def test_compare(fieldmark: Any, tmp_path: Path) -> None:
    labels = ["a", "b"] * 50
    runs = {"good": labels, "poor": ["a"] * 100}
    for name, predicted in runs.items():
        table = pa.table({"path": [str(i) for i in range(100)], "label": labels, "predicted": predicted})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    done = fieldmark(
        "compare", tmp_path / "poor.parquet", tmp_path / "good.parquet", "--samples", 200, "--json"
    )
    assert done.json["better"] == "b" and done.json["top1"]["difference"] == pytest.approx(0.5)
    assert "B is better" in fieldmark("compare", tmp_path / "poor.parquet", tmp_path / "good.parquet").out
    gone = fieldmark("compare", tmp_path / "none", tmp_path / "good.parquet")
    assert gone.status == 1 and gone.err.count("\n") == 1
