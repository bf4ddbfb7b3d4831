"""Strange photos: odd modes, odd shapes, no content, and copies of one photo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call
from PIL import Image


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
