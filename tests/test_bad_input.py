"""Bad input, through the command line: one clear line where nothing can be done, a warning where much still can.

The fourth part of the work's contract: what is wrong with a photo is listed, and never ends a run; what is
wrong with a run never leaves half a model.
"""

from __future__ import annotations

import csv
import html
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fieldmark import Recognizer
from fieldmark.cli import app
from fieldmark.runtime.bundle import Bundle


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network as a timm folder, so that the command line needs no hub and no time."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text('{"architecture": "test_efficientnet"}')
    return folder


def call(*words: object) -> SimpleNamespace:
    """The command line, in this process."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="fieldmark")
    answer = None
    if result.exit_code == 0 and "--json" in words:
        answer = json.loads(result.stdout.rstrip("\n").rsplit("\n", 1)[-1])
    return SimpleNamespace(status=result.exit_code, out=result.stdout, err=result.stderr, json=answer)


@pytest.fixture
def train(backbone: Path) -> Any:
    def run(source: Path, out: Path, *words: object) -> SimpleNamespace:
        flags = ["--backbone", backbone, "--size", 64, "--json", "--no-report", "--quiet"]
        return call("train", source, "--out", out, *flags, *words)

    return run


@pytest.fixture
def photos(photo_folder: Path, tmp_path: Path) -> Path:
    """A copy of four classes of photos, to be spoilt."""
    return shutil.copytree(photo_folder, tmp_path / "photos")


def skipped(out: Path) -> dict[str, str]:
    """skipped.csv as {file name: reason}."""
    with (out / "skipped.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(set(row) == {"path", "reason"} for row in rows)
    return {Path(row["path"]).name: row["reason"] for row in rows}


def png_of(width: int, height: int) -> bytes:
    """A PNG file that declares a size and has next to no content."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


# -- nothing can be done: one line, exit 1, no model


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
    assert (
        done.returncode == 1 and done.err_lines == 1 if hasattr(done, "err_lines") else done.returncode == 1
    )
    assert done.stderr.startswith("fieldmark: error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "File too large" in done.stderr
    assert not (out / "model").exists() and not list(out.glob(".*"))
    assert train(photos, out).status == 0, "the place is free again"


# -- photos that cannot be used are listed, and on it goes


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


# -- strange photos


@pytest.mark.parametrize("mode", ["L", "I;16", "1", "P", "RGBA", "CMYK"])
def test_folders_of_one_strange_mode(train: Any, photos: Path, tmp_path: Path, mode: str) -> None:
    ending = "tif" if mode == "CMYK" else "png"
    for photo in sorted(photos.rglob("*.jpg")):
        picture = Image.open(photo).convert("RGB")
        if mode == "I;16":
            grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
            picture = Image.fromarray(grey)
        else:
            picture = picture.convert(mode)
        picture.save(photo.with_suffix(f".{ending}"))
        photo.unlink()
    done = train(photos, tmp_path / "run")
    assert done.status == 0 and done.json["skipped"] == 0, done.err
    assert done.json["n_train"] + done.json["n_test"] == 48


def test_photos_without_content(train: Any, photos: Path, tmp_path: Path) -> None:
    """Plain squares of one colour a class: no structure at all, and still finite answers."""
    for index, folder in enumerate(sorted(photos.iterdir())):
        for number, photo in enumerate(sorted(folder.iterdir())):
            Image.new("RGB", (20 + number, 30), (60 * index + number, 100, 255 - 60 * index)).save(photo)
    done = train(photos, tmp_path / "run")
    assert done.status == 0 and done.json["top1"] is not None, done.err
    told = call("predict", tmp_path / "run", photos, "--out", tmp_path / "p.jsonl", "--json")
    assert told.json["errors"] == 0
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert all(row["score"] is not None and 0 < row["score"] <= 1 for row in rows)


def test_photos_that_are_all_the_same(train: Any, photos: Path, tmp_path: Path) -> None:
    """Copies of one photo under four labels: there is nothing to learn, and it says so."""
    data = (photos / "circle/000.jpg").read_bytes()
    for photo in photos.rglob("*.jpg"):
        photo.write_bytes(data)
    done = train(photos, tmp_path / "run")
    assert done.status == 1 and done.err.count("\n") == 1, done.err
    assert not (tmp_path / "run/model").exists()


def test_pictures_of_one_pixel_and_of_odd_shapes(train: Any, photos: Path, tmp_path: Path) -> None:
    for index, size in enumerate([(1, 1), (1, 900), (900, 1), (3, 2)]):
        for folder in sorted(photos.iterdir()):
            dice = np.random.default_rng(index)
            pixels = dice.integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"odd{index}{folder.name}.png")
    done = train(photos, tmp_path / "run")
    assert done.status == 0 and done.json["skipped"] == 0, done.err


# -- killed in the middle


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
        [sys.executable, "-c", KILLED.format(module="train.write", stage="write_splits"), *map(str, words)],
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
