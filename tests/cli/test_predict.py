"""``fieldmark predict`` with a predictor that needs no model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fieldmark.runtime import decision

HEADER = [
    "path",
    "label",
    "score",
    "label_2",
    "score_2",
    "label_3",
    "score_3",
    "label_4",
    "score_4",
    "label_5",
]
HEADER += ["score_5", "error", "model"]
NAMES = ["a.jpg", "bad.jpg", "b, c.jpg", "猫.png", "deep/d.jpg"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "notes.txt").touch()
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file]
        return list(csv.DictReader(file))


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_folder(fieldmark: Any, model: Path, fake: Any, photos: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"predictions{ending}"
    done = fieldmark("predict", model, photos, "--out", out, "--json")
    assert done.status == 0
    assert done.json["photos"] == 5 and done.json["errors"] == 1 and done.json["out"] == str(out)
    assert "1 of them have an error" in done.err
    table = rows(out)
    assert list(table[0]) == HEADER
    assert sorted(row["path"] for row in table) == sorted(str(photos / name) for name in NAMES)
    for row in table:
        if "bad" in row["path"]:
            assert row["error"] == "file is truncated" and not row["label"]
        else:
            assert row["label"] in fake.classes and 0 < float(row["score"]) <= 1 and not row["error"]
            assert not row["label_4"], "three classes only"


def test_the_run_folder_will_do(fieldmark: Any, model: Path, photos: Path) -> None:
    assert fieldmark("predict", model.parent, photos / "a.jpg").status == 0
    missing = fieldmark("predict", model.parent.parent / "none", photos / "a.jpg")
    assert missing.status == 1 and missing.err.count("\n") == 1


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_stop_and_go_on(
    fieldmark: Any,
    model: Path,
    fake: Any,
    photos: Path,
    tmp_path: Path,
    ending: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, whole = tmp_path / f"p{ending}", tmp_path / f"whole{ending}"
    assert fieldmark("predict", model, photos, "--out", whole).status == 0
    expected, reach = rows(whole), fake.predict_proba

    def breaks(self: Any, some: list[str]) -> np.ndarray:
        if len(self.seen) == 3:
            raise KeyboardInterrupt
        return reach(self, some)

    fake.seen.clear()
    with monkeypatch.context() as patch:
        patch.setattr(fake, "predict_proba", breaks)
        stopped = fieldmark("predict", model, photos, "--out", out)
        assert stopped.status == 130 and "interrupted: the same command with --resume goes on" in stopped.err
    refused = fieldmark("predict", model, photos, "--out", out)
    assert refused.status == 2 and "--resume" in refused.err
    done = fieldmark("predict", model, photos, "--out", out, "--resume", "--json")
    assert done.json["photos"] == 2 and "3 photos were done before" in done.err
    assert rows(out) == expected
    assert len(fake.seen) == 5, "no photo was done twice"
    assert fieldmark("predict", model, photos, "--out", out, "--resume", "--json").json["photos"] == 0
    assert fieldmark("predict", model, photos, "--out", out, "--overwrite", "--json").json["photos"] == 5
    assert rows(out) == expected


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_another_model_does_not_go_on(
    fieldmark: Any,
    model: Path,
    fake: Any,
    photos: Path,
    tmp_path: Path,
    ending: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / f"p{ending}"
    assert fieldmark("predict", model, photos / "a.jpg", "--out", out).status == 0
    before = out.read_bytes()
    monkeypatch.setattr(fake, "bundle", SimpleNamespace(key="ba9876543210"))
    refused = fieldmark("predict", model, photos, "--out", out, "--resume")
    assert (
        refused.status == 2 and refused.err.count("\n") == 1 and "another model (0123456789ab" in refused.err
    )
    assert out.read_bytes() == before and [path.name for path in tmp_path.glob("*p.*")] == [out.name]
    assert fieldmark("predict", model, photos, "--out", out, "--overwrite").status == 0
    assert {row["model"] for row in rows(out)} == {"ba9876543210"}


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("first, then", [("f32", "bf16"), ("bf16", "f32"), ("bf16", "f16")])
def test_another_precision_does_not_go_on(
    fieldmark: Any, model: Path, photos: Path, tmp_path: Path, ending: str, first: str, then: str
) -> None:
    out = tmp_path / f"p{ending}"
    words = ("predict", model, photos / "a.jpg", "--out", out, "--precision")
    assert fieldmark(*words, first).status == 0
    before = out.read_bytes()
    refused = fieldmark(*words, then, "--resume")
    assert refused.status in (1, 2) and refused.err.count("\n") == 1 and "--overwrite" in refused.err
    assert out.read_bytes() == before
    assert fieldmark(*words, first, "--resume").status == 0
    assert {row.get("setting") for row in rows(out)} == {None if first == "f32" else f"precision {first}"}


def test_a_wrong_model_leaves_nothing(fieldmark: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    assert fieldmark("predict", tmp_path / "none", photos, "--out", tmp_path / "p.csv").status == 1
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize(
    "words",
    [["--resume"], ["--overwrite"], ["--out", "x.txt"], ["--out", "x.csv", "--resume", "--overwrite"]],
)
def test_wrong_usage(fieldmark: Any, model: Path, photos: Path, words: list[str]) -> None:
    assert fieldmark("predict", model, photos, *words).status == 2


def test_on_the_screen(fieldmark: Any, model: Path, photos: Path) -> None:
    one = fieldmark("predict", model, photos / "a.jpg")
    assert one.out.startswith(str(photos / "a.jpg")) and one.out.count("%") == 3
    assert fieldmark("predict", model, photos / "a.jpg", "--top", 1).out.count("%") == 1
    many = fieldmark("predict", model, photos, "--quiet")
    assert len(many.out.splitlines()) >= 5 and many.err == ""
    lines = fieldmark("predict", model, photos, "--json").out.splitlines()
    assert len(lines) == 6
    assert json.loads(lines[0])["path"] and json.loads(lines[-1])["photos"] == 5


def test_several_sources_and_no_photo_twice(
    fieldmark: Any, model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.jsonl"
    done = fieldmark(
        "predict",
        model,
        photos / "a.jpg",
        photos / "deep",
        photos / "a.jpg",
        photos / "gone.jpg",
        "--out",
        out,
    )
    assert done.status == 0
    assert [Path(row["path"]).name for row in rows(out)] == ["a.jpg", "gone.jpg", "d.jpg"] or len(
        rows(out)
    ) == 3


def test_nothing_there(fieldmark: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in ("empty", "missing"):
        done = fieldmark("predict", model, tmp_path / source)
        assert done.status == 1 and done.err.count("\n") == 1


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_photos_of_one_specimen(
    fieldmark: Any,
    model: Path,
    fake: Any,
    photos: Path,
    tmp_path: Path,
    ending: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fieldmark.cli.predict._CHUNK", 2)
    table = tmp_path / "specimens.csv"
    table.write_text(
        "path,group\nphotos/a.jpg,x\nphotos/bad.jpg,x\nphotos/猫.png,x\nphotos/deep/d.jpg,\n"
        'photos/bad.jpg,y\n"photos/b, c.jpg",z\n',
        encoding="utf-8",
    )
    out = tmp_path / f"s{ending}"
    done = fieldmark("predict", model, table, "--by", "group", "--out", out, "--json")
    assert done.status == 0 and done.json["specimens"] == 4 and done.json["errors"] == 2
    found = {row["group"]: row for row in rows(out)}
    assert len(found) == 4
    assert int(found["x"]["photos"]) == 2 and found["x"]["error"] == "1 of 3 photos cannot be read"
    assert not found["y"]["label"] and found["y"]["error"] == "no photo can be read"
    assert any("d.jpg" in name for name in found), "a photo without a specimen stands for itself"
    scores = fake().predict_proba([str(photos / "a.jpg"), str(photos / "猫.png")])
    best, score = decision.top(decision.pool(scores)[None], fake.classes)[0][0]
    assert found["x"]["label"] == best
    assert float(found["x"]["score"]) == pytest.approx(score, rel=1e-4)
    wrong = fieldmark("predict", model, table, "--by", "nest")
    assert wrong.status in (1, 2) and "nest" in wrong.err and wrong.err.count("\n") == 1


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_refused_rows_are_told_beside_specimens(
    fieldmark: Any, model: Path, photos: Path, tmp_path: Path, ending: str
) -> None:
    table, out = tmp_path / "specimens.csv", tmp_path / f"s{ending}"
    table.write_text("path,group\nphotos/a.jpg,x\n,y\n")
    done = fieldmark("predict", model, table, "--by", "group", "--out", out, "--json")
    assert done.json["specimens"] == 2 and done.json["errors"] == 1
    one, refused = rows(out)
    assert one["group"] == "x" and "specimens.csv" in refused["group"] and "no file name" in refused["error"]
    assert int(refused["photos"]) == 0 and not refused["label"]
    again = fieldmark("predict", model, table, "--by", "group", "--out", out, "--resume", "--json")
    assert again.json["specimens"] == 0 and len(rows(out)) == 2


@pytest.mark.parametrize("column", ["label", "score", "label_3", "photos", "error", "model"])
def test_specimens_by_a_column_of_the_answer(
    fieldmark: Any, model: Path, tmp_path: Path, photos: Path, column: str
) -> None:
    table = tmp_path / "specimens.csv"
    table.write_text(f"path,{column}\nphotos/a.jpg,x\n")
    done = fieldmark("predict", model, table, "--by", column, "--out", tmp_path / "s.csv")
    assert done.status == 2 and f"--by {column}" in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "s.csv").exists()


def test_json_for_a_narrow_screen(model: Path, fake: Any, photos: Path) -> None:
    """A terminal that is not UTF-8 gets escapes, not an error."""
    from typer.testing import CliRunner

    from fieldmark.cli import app

    words = ["predict", str(model), str(photos / "猫.png"), "--json"]
    for charset, told in (("latin-1", rb"\u732b"), ("utf-8", "猫".encode())):
        done = CliRunner(charset=charset).invoke(app, words)
        assert done.exit_code == 0 and told in done.stdout_bytes.splitlines()[0], charset
