"""The main job through real processes: train, evaluate, predict, change, search; and bad input."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fieldmark.recognizer")
pytestmark = pytest.mark.xdist_group("end to end")

#: Runs the command line as if torch and its friends were not installed.
BARE = (
    "import sys\n"
    "for name in ('torch', 'torchvision', 'timm', 'sklearn', 'scipy', 'onnx'): sys.modules[name] = None\n"
    "from fieldmark.cli import main; main()"
)
FULL = "from fieldmark.cli import main; main()"
#: What a shell starts in the background has Ctrl-C switched off, and so has all that it starts.
LISTENS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def call(*words: object, bare: bool = False, cwd: Path | None = None) -> SimpleNamespace:
    done = subprocess.run(
        [sys.executable, "-c", BARE if bare else FULL, *map(str, words)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        timeout=120,
    )
    last = done.stdout.rstrip("\n").rsplit("\n", 1)[-1]
    answer = json.loads(last) if "--json" in words and done.returncode == 0 else None
    return SimpleNamespace(status=done.returncode, out=done.stdout, err=done.stderr, json=answer)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, paint_photos: Any) -> Path:
    """Four classes with names that are hard to carry round, and a few files that are no photos."""
    folder = paint_photos(tmp_path_factory.mktemp("e2e") / "photos", classes=4, each=20, size=96)
    names = {"circle": "circle, round", "square": 'the "square"', "triangle": "三角形 🔺", "cross": "Kreuz ä"}
    for old, new in names.items():
        (folder / old).rename(folder / new)
    (folder / "Kreuz ä/empty.jpg").touch()
    (folder / "Kreuz ä/text.jpg").write_text("no photo at all")
    whole = (folder / "Kreuz ä/000.jpg").read_bytes()
    (folder / "Kreuz ä/cut.jpg").write_bytes(whole[: len(whole) // 3])
    return folder


@pytest.fixture(scope="module")
def run(photos: Path) -> SimpleNamespace:
    out = photos.parent / "run"
    done = call("train", photos, "--out", out, "--seed", 1, "--json")
    assert done.status == 0, done.err
    return SimpleNamespace(out=out, model=out / "model", json=done.json, err=done.err)


def test_train(run: SimpleNamespace) -> None:
    fields = {"model", "mode", "top1", "n_train", "n_test", "seconds", "seconds_evaluate", "skipped"}
    assert set(run.json) == fields
    assert run.json["mode"] == "instant" and run.json["skipped"] == 3
    assert run.json["top1"] >= 0.8 and run.json["n_test"] >= 12 and run.json["n_train"] >= 50
    assert Path(run.json["model"]).resolve() == run.model.resolve()
    assert {"run.json", "split.csv", "skipped.csv", "report.html"} <= {
        path.name for path in run.out.iterdir()
    }
    assert {Path(row["path"]).name for row in rows(run.out / "skipped.csv")} >= {
        "empty.jpg",
        "text.jpg",
        "cut.jpg",
    }
    record = json.loads((run.out / "run.json").read_text(encoding="utf-8"))
    assert record["seed"] == 1 or record.get("settings", {}).get("seed") == 1
    assert not [path for path in run.model.rglob("*") if path.suffix in (".pkl", ".pth", ".pt")]


def test_what_stands_at_out(run: SimpleNamespace, photos: Path, tmp_path: Path) -> None:
    refused = call("train", photos, "--out", run.out)
    assert refused.status == 2 and "exists already" in refused.err and refused.err.count("\n") == 1
    again = call("train", photos, "--out", run.out, "--resume", "--json")
    assert again.status == 0 and again.json == run.json
    (tmp_path / "precious.txt").touch()
    foreign = call("train", photos, "--out", tmp_path, "--overwrite")
    assert foreign.status == 2 and (tmp_path / "precious.txt").exists()


def test_evaluate_without_torch(run: SimpleNamespace, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.parquet"
    done = call("evaluate", run.model, photos, "--split", "test", "--out", out, "--json", bare=True)
    assert done.status == 0, done.err
    assert {
        "n",
        "top1",
        "top1_ci95",
        "top5",
        "balanced_accuracy",
        "macro_f1",
        "nll",
        "ece",
        "per_class",
    } <= set(done.json)
    assert done.json["n"] == run.json["n_test"]
    assert done.json["top1"] == pytest.approx(run.json["top1"])
    assert set(done.json["per_class"]) == {"circle, round", 'the "square"', "三角形 🔺", "Kreuz ä"}
    page = tmp_path / "page.html"
    assert call("evaluate", run.model, photos, "--report", page, bare=True).status == 0
    assert "Confusion matrix" in (told := page.read_text(encoding="utf-8"))
    assert "where the model look" not in told, "PyTorch shows that"
    own = call("compare", out, out, "--json", bare=True)
    assert own.json["better"] is None and own.json["top1"]["difference"] == 0


def test_predict_without_torch(run: SimpleNamespace, photos: Path, tmp_path: Path) -> None:
    for ending in ("csv", "jsonl", "parquet"):
        done = call("predict", run.model, photos, "--out", tmp_path / f"p.{ending}", "--json", bare=True)
        assert done.status == 0, done.err
        assert (done.json["photos"], done.json["errors"]) == (83, 3)
    table = rows(tmp_path / "p.csv")
    right = sum(row["label"] == Path(row["path"]).parent.name for row in table)
    assert right >= 72
    assert {Path(row["path"]).name for row in table if row["error"]} == {"empty.jpg", "text.jpg", "cut.jpg"}


def test_killed_and_continued(run: SimpleNamespace, photos: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of predicting: --resume ends with the rows of a run that was left in peace."""
    many = tmp_path / "many.csv"
    source = sorted(path for path in photos.rglob("0*.jpg"))
    many.write_text("path\n" + "".join(f'"{str(path).replace(chr(34), chr(34) * 2)}"\n' for path in source))
    whole, out = tmp_path / "whole.csv", tmp_path / "p.csv"
    assert call("predict", run.model, many, "--out", whole, bare=True).status == 0
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            BARE,
            "predict",
            str(run.model),
            str(many),
            "--out",
            str(out),
            "--workers",
            "1",
        ],
        stderr=subprocess.DEVNULL,
    )
    for _ in range(1000):
        if out.exists() and out.read_bytes().count(b"\n") > 10:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = out.read_bytes().count(b"\n") - 1
    done = call("predict", run.model, many, "--out", out, "--resume", "--json", bare=True)
    assert done.json["photos"] <= len(source) - before + 1
    key = {row["path"]: row["label"] for row in rows(whole)}
    assert {row["path"]: row["label"] for row in rows(out)} == key
    assert len(rows(out)) == len(source)


def test_one_class_more_and_one_less(run: SimpleNamespace, tmp_path: Path, paint_photos: Any) -> None:
    new = paint_photos(tmp_path / "new", classes=5, each=15, size=96, seed=7) / "circle 4"
    more = tmp_path / "more"
    done = call("add-class", run.model, "new: ring\n2", new, "--out", more, "--json")
    assert done.status == 0, done.err
    assert done.json["classes"] == 5
    table = tmp_path / "p.csv"
    assert call("predict", more, new, "--out", table, bare=True).status == 0
    assert sum(row["label"] == "new: ring\n2" for row in rows(table)) >= 10
    assert call("add-class", run.model, "circle, round", new, "--out", tmp_path / "x").status in (1, 2)
    assert call("add-class", run.model, "new", new, "--out", more).status == 2
    done = call("remove-class", more, "new: ring\n2", "--json")
    assert done.status == 0 and done.json["classes"] == 4 and Path(done.json["model"]) == more
    assert call("remove-class", more, "new: ring\n2").status in (1, 2)


def test_search(run: SimpleNamespace, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.parquet"
    assert call("embed", run.model, photos, "--out", out, "--json", bare=True).json["errors"] == 3
    query = photos / "三角形 🔺/003.jpg"
    found = call("similar", run.model, query, "--in", out, "-k", 3, "--json", bare=True).json["similar"]
    assert len(found) == 3 and all(0 < one["similarity"] <= 1.0001 for one in found)
    judged = call("similar", run.model, "--in", out, "--json", bare=True).json
    assert judged["n"] == 80 and judged["recall_at"]["1"] > 0.5


def test_bad_input(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "single/only").mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (32, 32), (number * 40, 0, 0)).save(tmp_path / f"single/only/{number}.png")
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    cases: list[tuple[Any, ...]] = [
        (tmp_path / "none",),
        (tmp_path / "empty",),
        (tmp_path / "single",),
        (tmp_path / "columns.csv",),
        (photos, "--backbone", "no_such_backbone", "--offline"),
    ]
    if os.name == "posix":
        cases.append((photos, "--out", "/proc/no/such/place"))
    for number, words in enumerate(cases):
        out = [] if "--out" in words else ["--out", tmp_path / f"run {number}"]
        done = call("train", *words, *out, "--quiet")
        assert done.status == 1, words
        assert done.err.startswith("fieldmark: error: ") and done.err.count("\n") == 1, done.err
        assert not (tmp_path / f"run {number}/model").exists(), "no half model"


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="signals of POSIX")
def test_interrupted_training_leaves_no_half_model(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENS + FULL, "train", str(photos), "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"FIELDMARK_CACHE": str(tmp_path / "cache")},
    )
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("the machine was quicker")
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert not (out / "model").exists()
    done = call("train", photos, "--out", out, "--resume", "--json")
    assert done.status == 0 and done.json["top1"] is not None
