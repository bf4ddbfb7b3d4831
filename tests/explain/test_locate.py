"""Boxes and masks from maps of what a model looks at."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from fieldmark.cli.locate import rows
from fieldmark.explain import locate as module
from fieldmark.explain.locate import Locator, found
from fieldmark.methods.base import Found, Method
from fieldmark.methods.task import Task
from fieldmark.runtime import image
from fieldmark.runtime.preprocess import Preprocess


class Bright(Method):
    """Looks at what is bright, and says class 1 of such photos."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def attention(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(1).clamp_min(0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.0, 3.0]]).expand(len(images), -1)


@pytest.fixture
def locator(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "restore", lambda _: Bright())

    def make(resize: str = "stretch", **more: Any) -> Locator:
        preprocess = Preprocess(
            size=64, mean=(0, 0, 0), std=(1, 1, 1), resize=resize, interpolation="bilinear"
        )
        decision = SimpleNamespace(temperature=1.0)
        section = SimpleNamespace(preprocess=preprocess, method="bright", decision=decision)
        return Locator(SimpleNamespace(path="m", section=section, classes=["a", "b"]), **more)  # type: ignore[arg-type]

    return make


class Detector(Bright):
    """Says two boxes of what the network sees, whatever the photo, and one of a class that was removed."""

    def __init__(self) -> None:
        super().__init__()
        self.task = Task(3, names=("a", "b", "gone"))

    def boxes(self, images: torch.Tensor, least: float = 0.05) -> list[Found]:
        boxes = torch.tensor([[0.0, 0.0, 0.1, 0.1], [0.5, 0.5, 0.75, 1.0], [0.0, 0.25, 0.25, 0.5]])
        scores = torch.tensor([0.95, 0.9, 0.3])
        good = scores >= least
        return [Found(boxes[good], scores[good], torch.tensor([2, 0, 1])[good])] * len(images)


def photo(path: Path, *spots: tuple[int, int, int, int, int], size: tuple[int, int] = (200, 100)) -> str:
    """A dark photo with bright rectangles: left, top, right, bottom, brightness."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for left, top, right, bottom, light in spots:
        pixels[top:bottom, left:right] = light
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
def test_boxes_lie_where_the_things_are(locator: Any, tmp_path: Path, resize: str) -> None:
    """In pixels of the photo, whatever its shape and however it is resized; the brighter thing comes first."""
    path = photo(tmp_path / "a.png", (60, 20, 90, 50, 150), (110, 60, 140, 90, 250))
    (one,) = locator(resize)([path])
    assert (one.label, one.error) == ("b", "") and one.score == pytest.approx(0.9526, abs=1e-3)
    assert len(one.things) == 2
    np.testing.assert_allclose(one.things[0].box, (110, 60, 140, 90), atol=4)
    np.testing.assert_allclose(one.things[1].box, (60, 20, 90, 50), atol=4)
    assert one.things[0].score == pytest.approx(one.score) and one.things[1].score < one.score
    truth = np.zeros((100, 200), bool)
    truth[60:90, 110:140] = truth[20:50, 60:90] = True
    both = (one.mask & truth).sum() / (one.mask | truth).sum()
    assert one.mask.shape == (100, 200) and both > 0.75


def test_large_photos_are_read_as_predict_reads_them(locator: Any, tmp_path: Path) -> None:
    """At a reduced scale, so that the scores are its own; the boxes are in pixels of the upright photo."""
    pixels = np.zeros((800, 1600, 3), np.uint8)
    pixels[200:500, 900:1200] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the photo is 800 x 1600
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    one, seen = locator(), []
    one.method.forward = lambda images: seen.append(images) or torch.zeros(len(images), 2)
    (found,) = one([str(tmp_path / "a.jpg")])
    small = image.load(tmp_path / "a.jpg", one.preprocess.min_side)
    assert small.size == (200, 400)
    np.testing.assert_array_equal(seen[0][0], one.preprocess(small))
    assert found.mask.shape == (1600, 800)
    np.testing.assert_allclose(found.things[0].box, (300, 900, 600, 1200), atol=30)


def test_at_most_so_many(locator: Any, tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png", *((20 + 60 * i, 40, 50 + 60 * i, 70, 200 + 10 * i) for i in range(3)))
    (few,), (all_,) = locator(most=2)([path]), locator()([path])
    assert len(few.things) == 2 and len(all_.things) == 3
    for one, left in ((few, 80), (all_, 20)):  # the mask is of what has a box; the weakest thing lies left
        columns = np.flatnonzero(one.mask.any(0))
        assert columns.min() == pytest.approx(left, abs=6) and columns.max() == pytest.approx(170, abs=6)


def test_a_photo_that_cannot_be_read_is_told(locator: Any, tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.jpg", photo(tmp_path / "a.png", (60, 20, 90, 50, 150))
    bad.write_bytes(b"nothing")
    one, two = locator()([str(bad), good])
    assert one.error and one.label is None and one.things == () and two.things


def test_parts_are_those_of_scipy() -> None:
    chance = torch.Generator().manual_seed(0)
    maps = torch.nn.functional.avg_pool2d(torch.rand(4, 1, 40, 40, generator=chance), 9, 1, 4)[:, 0] ** 8
    parts, marked = found(maps, 0.5, 100)
    for values, own, inside in zip(maps.numpy(), parts, marked.numpy(), strict=True):
        labels, _ = ndimage.label(values > 0.5 * values.max(), np.ones((3, 3)))
        slices = [s for i, s in enumerate(ndimage.find_objects(labels), 1) if (labels == i).sum() >= 8]
        truth = sorted((s[1].start / 40, s[0].start / 40, s[1].stop / 40, s[0].stop / 40) for s in slices)
        np.testing.assert_allclose(sorted(map(tuple, (box for box, _ in own))), truth)
        assert inside.sum() == sum(
            (labels == i).sum() for i in range(1, labels.max() + 1) if (labels == i).sum() >= 8
        )
        strengths = [strength for _, strength in own]
        assert strengths == sorted(strengths, reverse=True) and strengths[0] == 1


def test_an_empty_map_marks_nothing() -> None:
    parts, marked = found(torch.zeros(2, 8, 8), 0.2, 5)
    assert parts == [[], []] and not marked.any()


@pytest.mark.parametrize(
    "resize, boxes",
    [("stretch", [(100, 50, 150, 100), (0, 25, 50, 50)]), ("pad", [(100, 50, 150, 100), (0, 0, 50, 50)])],
)
def test_a_detector_is_asked(
    locator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resize: str, boxes: list[tuple[int, ...]]
) -> None:
    """Its boxes in pixels of the photo, each with its own class and score; the mask is what they cover."""
    monkeypatch.setattr(module, "restore", lambda _: Detector())
    path = photo(tmp_path / "a.png")
    (one,) = locator(resize)([path])
    assert [thing.box for thing in one.things] == boxes and one.label == "b"
    assert [(thing.label, round(thing.score, 3)) for thing in one.things] == [("a", 0.9), ("b", 0.3)]
    mask = np.zeros((100, 200), bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    np.testing.assert_array_equal(one.mask, mask)
    assert [len(one.things) for one in locator(resize, most=1)([path])] == [1]
    assert [len(one.things) for one in locator(resize, threshold=0.5)([path])] == [1]
    (row,) = rows(iter([one]), None)
    assert (row["box_x"], row["box_w"], row["box_score"]) == (100, 50, 0.9)
    assert json.loads(row["boxes"])[1][4:] == [0.3, "b"]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("other", [["--most", "2"], ["--threshold", "0.5"], ["--masks", "masks"]])
def test_other_options_do_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, other: list[str]
) -> None:
    """Boxes found by several thresholds are not mixed in one table."""
    from typer.testing import CliRunner

    from fieldmark.cli import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fieldmark.runtime.bundle.Bundle", lambda _: SimpleNamespace(key="0123"))
    monkeypatch.setattr(
        module, "Locator", lambda *_: lambda paths: (module.Located(path, "a", 0.5) for path in paths)
    )
    photo(tmp_path / "a.png")
    for first, then in ((other, []), ([], other)):
        out = f"{len(first)}{ending}"
        words = ["locate", "model", "a.png", "--out", out]
        assert CliRunner().invoke(app, words + first).exit_code == 0
        refused = CliRunner().invoke(app, [*words, *then, "--resume"])
        assert refused.exit_code in (1, 2) and refused.stderr.count("\n") == 1
        assert CliRunner().invoke(app, [*words, *first, "--resume"]).exit_code == 0
