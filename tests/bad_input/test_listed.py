"""Photos that cannot be used are listed with their reasons, and on it goes; names of classes survive all of it."""

from __future__ import annotations

import csv
import html
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from commands import call, png_of, skipped
from PIL import Image

from fieldmark import Recognizer
from fieldmark.runtime.bundle import Bundle


def test_photos_that_cannot_be_used(train: Any, photos: Path, tmp_path: Path) -> None:
    whole = (photos / "circle/000.jpg").read_bytes()
    picture = Image.open(photos / "circle/000.jpg")
    (photos / "circle/empty.jpg").touch()
    (photos / "circle/text.jpg").write_text("this is no photo")
    (photos / "cross/cut.jpg").write_bytes(whole[: len(whole) // 2])
    picture.save(tmp_path / "whole.png")
    (photos / "cross/cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    (photos / "cross/large.png").write_bytes(png_of(10_000, 5_001))
    (photos / "square/page.jpg").write_text("<!DOCTYPE html><html>not found</html>")
    (photos / "square/noise.webp").write_bytes(bytes(range(200, 256)) * 20)
    expected = {
        "empty.jpg": "file is empty",
        "text.jpg": "text, not an image",
        "cut.jpg": "truncated",
        "cut.png": "truncated",
        "large.png": "larger than 50 megapixels (10000 x 5001 declared)",
        "page.jpg": "a web page",
        "noise.webp": "not a photo",
    }
    try:
        (photos / "square/link.jpg").symlink_to(tmp_path / "nowhere.jpg")
        expected["link.jpg"] = "broken link"
    except OSError:  # Windows without the right to make links
        pass
    if os.name == "posix" and os.geteuid() != 0:
        (photos / "square/locked.jpg").write_bytes(whole)
        (photos / "square/locked.jpg").chmod(0)
        expected["locked.jpg"] = "permission denied"
    picture.save(photos / "triangle/named.jpg", "PNG")  # a photo all the same

    out = tmp_path / "run"
    done = train(photos, out)
    assert done.status == 0, done.err
    found = skipped(out)
    assert set(found) == set(expected) and all(expected[name] in found[name] for name in expected), found
    assert done.json["skipped"] == len(expected)
    assert done.json["n_train"] + done.json["n_test"] == 49
    # The same where the photos come with a split of their own, and for evaluate and predict.
    table = tmp_path / "t.csv"
    lines = [
        f"{photo},{photo.parent.name},{'test' if photo.name in ('cut.jpg', 'text.jpg', '001.jpg') else 'train'}"
        for photo in sorted(photos.rglob("*.*"))
    ]
    table.write_text("\n".join(["path,label,split", *lines, "gone.jpg,circle,train"]) + "\n")
    done = train(table, tmp_path / "own")
    assert done.status == 0 and skipped(tmp_path / "own") == {**found, "gone.jpg": "no such file"}
    assert (done.json["n_train"], done.json["n_test"]) == (45, 4)
    judged = call("evaluate", out, table, "--split", "all", "--json")
    assert judged.status == 0, judged.err
    assert judged.json["excluded_by_reason"]["unreadable"] == len(expected) + 1
    told = call("predict", out, photos, "--out", tmp_path / "p.csv", "--json")
    assert told.json["errors"] == len(expected) and told.json["photos"] == 49 + len(expected)
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert all(rows[name]["error"] == reason and not rows[name]["label"] for name, reason in found.items())


def test_a_huge_photo_is_not_decoded(train: Any, photos: Path, tmp_path: Path) -> None:
    """Its size is known before a pixel is: 40 gigapixels cost neither memory nor time."""
    (photos / "cross/bomb.png").write_bytes(png_of(200_000, 200_000))
    done = train(photos, tmp_path / "run")
    assert done.status == 0 and "50 megapixels" in skipped(tmp_path / "run")["bomb.png"]


def test_a_class_with_one_photo(train: Any, photos: Path, tmp_path: Path) -> None:
    for photo in sorted((photos / "cross").iterdir())[1:]:
        photo.unlink()
    done = train(photos, tmp_path / "run")
    assert done.status == 0, done.err
    assert "1 class has one photo to learn from: 'cross'" in done.err
    assert Bundle(tmp_path / "run/model").classes == ["circle", "cross", "square", "triangle"]
    notes = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))
    assert any("'cross'" in line for line in notes["warnings"])


def test_only_classes_with_one_photo(train: Any, photos: Path, tmp_path: Path) -> None:
    for photo in photos.rglob("*.jpg"):
        if photo.stem != "000":
            photo.unlink()
    done = train(photos, tmp_path / "run")
    assert done.status == 0 and (done.json["n_train"], done.json["top1"]) == (4, None), done.err
    answer = call("predict", tmp_path / "run", photos / "cross/000.jpg", "--json")
    assert json.loads(answer.out.splitlines()[0])["label"] == "cross"
    assert np.isfinite(Recognizer.load(tmp_path / "run").embed(photos / "cross/000.jpg")).all()


def test_two_photos_a_class(train: Any, photos: Path, tmp_path: Path) -> None:
    for photo in photos.rglob("*.jpg"):
        if int(photo.stem) > 1:
            photo.unlink()
    done = train(photos, tmp_path / "run")
    assert done.status == 0, done.err
    assert done.json["n_train"] + (done.json["n_test"] or 0) == 8 and done.json["n_train"] >= 4


def test_test_labels_that_were_never_seen(train: Any, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    lines = ["path,label,split"]
    for photo in sorted(photos.rglob("*.jpg")):
        new = photo.parent.name == "cross"
        lines.append(f"{photo},{photo.parent.name},{'test' if new or int(photo.stem) < 3 else 'train'}")
    table.write_text("\n".join(lines) + "\n")
    done = train(table, tmp_path / "run")
    assert done.status == 0 and done.json["n_test"] == 9, done.err
    assert "1 label was never seen in training" in done.err and "'cross'" in done.err
    judged = call("evaluate", tmp_path / "run", table, "--json")
    assert judged.json["n"] == 9 and judged.json["excluded_by_reason"] == {"label never seen in training": 12}
    assert set(judged.json["per_class"]) == {"circle", "square", "triangle"}


# -- names


NAMES = [
    "plain",
    "with space",
    " outer \"quotes\" and 'others'",
    "comma, semicolon; tab\t",
    "two\nlines",
    "slash/and\\back",
    "<b>bold</b> & |pipe|",
    "七星瓢虫",
    "عنكبوت",
    "Käfer 🪲",
    "007",
    "NA",
]


def test_names_survive_the_whole_way(train: Any, backbone: Path, paint_photos: Any, tmp_path: Path) -> None:
    from pyarrow import parquet

    folder = paint_photos(tmp_path / "photos", classes=len(NAMES), each=4)
    table = tmp_path / "photos.csv"
    names = dict(zip(sorted(path.name for path in folder.iterdir()), NAMES, strict=True))
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for photo in sorted(folder.rglob("*.jpg")):
            writer.writerow([photo, names[photo.parent.name], "test" if photo.stem == "000" else "train"])
    out = tmp_path / "run"
    done = train(table, out, "--report")
    assert done.status == 0, done.err
    assert sorted(NAMES) == Bundle(out / "model").classes
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<b>bold</b>" not in page
    for name in ("七星瓢虫", "عنكبوت", "Käfer 🪲", "with space"):
        assert html.escape(name) in page
    with (out / "split.csv").open(encoding="utf-8", newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} == set(NAMES)

    judged = call("evaluate", out, table, "--out", tmp_path / "e.parquet", "--json")
    assert judged.status == 0, judged.err
    assert set(judged.json["per_class"]) == set(NAMES)
    assert set(parquet.read_table(tmp_path / "e.parquet")["label"].to_pylist()) == set(NAMES)

    found = {}
    for ending in ("csv", "jsonl", "parquet"):
        target = tmp_path / f"p.{ending}"
        assert call("predict", out, table, "--out", target).status == 0
        if ending == "csv":
            with target.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        elif ending == "jsonl":
            rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
        else:
            rows = parquet.read_table(target).to_pylist()
        assert len(rows) == 4 * len(NAMES)
        found[ending] = {
            row["path"]: [row["label"], *(row[f"label_{i}"] for i in range(2, 6))] for row in rows
        }
    assert found["csv"] == found["jsonl"] == found["parquet"]
    assert {name for labels in found["csv"].values() for name in labels} == set(NAMES)
    right = [labels[0] == names[Path(path).parent.name] for path, labels in found["csv"].items()]
    assert np.mean(right) > 0.6, "and they are the right ones"
