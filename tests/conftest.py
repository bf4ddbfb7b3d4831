"""Fixtures that all tests share: the real photos, a cache of their own, and a few small rendered photos."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

REPOSITORY = Path(__file__).resolve().parent.parent
SHAPES = ("circle", "square", "triangle", "cross")
Painter = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the whole run, shared by the parallel workers; the user's own is never touched."""
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    folder = base / "fieldmark-cache"
    folder.mkdir(exist_ok=True)
    os.environ["FIELDMARK_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real photo sets (``FIELDMARK_DATA``); without it the test is skipped."""
    folder = Path(os.environ.get("FIELDMARK_DATA") or REPOSITORY / "../shared/data").resolve()
    if not folder.is_dir():
        pytest.skip(f"no real photos at {folder}: set FIELDMARK_DATA")
    return folder


@pytest.fixture(scope="session")
def paint_photos() -> Painter:
    """``paint_photos(folder, classes=4, each=12, size=64, seed=0)``: class folders of rendered shapes."""
    return _paint_photos


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of twelve small photos. Shared by the session: read it, do not change it."""
    return _paint_photos(tmp_path_factory.mktemp("photos"))


def _paint_photos(folder: Path, classes: int = 4, each: int = 12, size: int = 64, seed: int = 0) -> Path:
    """A class is a shape and a hue (``circle``, ``square``…); place, scale, light and background vary."""
    for index in range(classes):
        name = SHAPES[index % len(SHAPES)] + ("" if index < len(SHAPES) else f" {index}")
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            dice = random.Random(f"{seed}-{index}-{number}")
            photo = _paint(index, classes, size, dice)
            photo.save(folder / name / f"{number:03}.jpg", quality=90)
    return folder


def _paint(index: int, classes: int, size: int, dice: random.Random) -> Image.Image:
    back = tuple(dice.randrange(60, 200) for _ in range(3))
    photo = Image.new("RGB", (size, size), back)
    pen = ImageDraw.Draw(photo)
    for _ in range(12):  # a little texture, so that no two photos are near-duplicates
        x, y = dice.randrange(size), dice.randrange(size)
        shade = tuple(min(255, max(0, value + dice.randrange(-40, 40))) for value in back)
        pen.rectangle((x, y, x + dice.randrange(4, size // 2), y + dice.randrange(4, size // 2)), fill=shade)
    hue = Image.new("HSV", (1, 1), (255 * index // classes, 220, dice.randrange(170, 255))).convert("RGB")
    fill = hue.getpixel((0, 0))
    radius = size * dice.uniform(0.2, 0.32)
    x, y = (dice.uniform(radius, size - radius) for _ in range(2))
    box = (x - radius, y - radius, x + radius, y + radius)
    match SHAPES[index % len(SHAPES)]:
        case "circle":
            pen.ellipse(box, fill=fill)
        case "square":
            pen.rectangle(box, fill=fill)
        case "triangle":
            pen.polygon([(x, box[1]), (box[0], box[3]), (box[2], box[3])], fill=fill)
        case _:
            pen.line((box[0], y, box[2], y), fill=fill, width=max(2, size // 8))
            pen.line((x, box[1], x, box[3]), fill=fill, width=max(2, size // 8))
    return photo
