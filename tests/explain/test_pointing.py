"""Where a method looks, against marks that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from fieldmark.explain import pointing as module
from fieldmark.explain.attention_picture import GAP, SIDE, attention_picture
from fieldmark.explain.pointing import covered, hits, looked_at, pointing
from fieldmark.methods.base import Method
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.preprocess import Preprocess


class Bright(Method):
    """Looks at what is bright."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def attention(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images.mean(1).clamp_min(0)[:, None], 4)[:, 0]


@pytest.fixture
def photos(tmp_path: Path) -> Catalog:
    """A bright spot in a dark photo: in its box in the first two, elsewhere in the third; the fourth has no box."""
    rows: dict[str, list[Any]] = {
        name: [] for name in ("path", "label", "mark_x", "mark_y", "mark_w", "mark_h")
    }
    for number, (spot, box) in enumerate(
        [((8, 8), (6, 6, 12, 12)), ((40, 20), (36, 16, 16, 16)), ((48, 48), (0, 0, 16, 16)), ((8, 8), None)]
    ):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[spot[1] : spot[1] + 8, spot[0] : spot[0] + 8] = 255
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        rows["path"].append(str(path))
        rows["label"].append("a")
        for side, value in zip("xywh", box or [None] * 4, strict=True):
            rows[f"mark_{side}"].append(value)
    return Catalog(pa.table(rows))


@pytest.fixture
def bundle(monkeypatch: pytest.MonkeyPatch) -> Any:
    from types import SimpleNamespace

    monkeypatch.setattr(module, "restore", lambda _: Bright())
    preprocess = Preprocess(size=64, mean=(0, 0, 0), std=(1, 1, 1), resize="stretch")
    return SimpleNamespace(path="model", section=SimpleNamespace(preprocess=preprocess, method="bright"))


def test_hits_and_shares(photos: Catalog, bundle: Any) -> None:
    found = pointing(bundle, photos)
    assert found.n == 3 and found.hit == pytest.approx(2 / 3)
    assert found.inside == pytest.approx(2 / 3, abs=0.08)
    assert found.area == pytest.approx((12 * 12 + 2 * 16 * 16) / (3 * 64 * 64), rel=1e-3)


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
def test_boxes_lie_in_what_the_network_sees(bundle: Any, tmp_path: Path, resize: str) -> None:
    """A wide photo: its pixels are not those of the square that is padded, or cut out of it."""
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[24:40, 72:88] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    box = {"mark_x": [70], "mark_y": [22], "mark_w": [20], "mark_h": [20]}
    catalog = Catalog(pa.table({"path": [str(tmp_path / "wide.png")], "label": ["a"], **box}))
    bundle.section.preprocess = bundle.section.preprocess.model_copy(update={"resize": resize})
    found = pointing(bundle, catalog)
    whole = {"stretch": 64 * 128, "pad": 128 * 128, "crop": 64 * 64}[resize]
    assert found.hit == 1 and found.inside > 0.8
    assert found.area == pytest.approx(20 * 20 / whole, rel=1e-3)


def test_a_mark_that_is_cropped_away_is_missed(bundle: Any, tmp_path: Path) -> None:
    Image.new("RGB", (128, 64), "white").save(tmp_path / "wide.png")
    box = {"mark_x": [2], "mark_y": [2], "mark_w": [20], "mark_h": [20]}
    catalog = Catalog(pa.table({"path": [str(tmp_path / "wide.png")], "label": ["a"], **box}))
    bundle.section.preprocess = bundle.section.preprocess.model_copy(update={"resize": "crop"})
    assert pointing(bundle, catalog)[:3] == (0, 0, 0)


def test_a_photo_that_cannot_be_read_is_left_out(photos: Catalog, bundle: Any) -> None:
    Path(photos.paths[2]).write_text("text")
    found = pointing(bundle, photos)
    assert found.n == 2 and found.hit == 1
    for path in photos.paths:
        Path(path).write_text("text")
    with pytest.raises(FieldmarkError, match="none of the 3 photos"):
        pointing(bundle, photos)


def test_what_is_a_hit() -> None:
    """One strongest place, by more than half of its cell in the box; nothing and everything are no place."""
    marks = torch.tensor([[1.0, 0.6], [0.4, 0.0]])
    maps = [[[9, 1], [1, 1]], [[1, 9], [1, 1]], [[1, 1], [9, 1]], [[1, 1], [1, 9]], [[9, 9], [1, 1]]]
    maps += [[[9, 1], [1, 9]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]]
    seen = torch.tensor(maps, dtype=torch.float32)
    expected = [True, True, False, False, True, False, False, False]
    assert hits(seen, marks.expand_as(seen)).tolist() == expected
    assert not hits(torch.ones(1, 2, 2), torch.ones(1, 2, 2)).any()


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
def test_the_picture_shows_what_the_network_sees(resize: str) -> None:
    """The frame lies round the mark, and is where it looks."""
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[24:40, 72:88] = (0, 0, 255)
    preprocess = Preprocess(size=64, mean=(0, 0, 0), std=(1, 1, 1), resize=resize)  # type: ignore[arg-type]
    mark = np.array([[70 / 128, 22 / 64, 90 / 128, 42 / 64]])
    drawn = attention_picture(Bright(), preprocess, [Image.fromarray(pixels)], mark)
    upper, lower = (np.asarray(drawn)[at : at + SIDE].astype(int) for at in (0, SIDE + GAP))
    blue = np.argwhere(upper[..., 2] > 200)
    frame = np.argwhere((lower == 255).all(2))
    assert (frame.min(0) <= blue.min(0)).all() and (frame.max(0) >= blue.max(0)).all()
    assert (abs(frame.mean(0) - blue.mean(0)) < 4).all()
    warm = np.argwhere(lower[..., 0] - lower[..., 1] > 60)
    assert (abs(warm.mean(0) - blue.mean(0)) < 4).all()


def test_photos_without_marks(photos: Catalog, bundle: Any) -> None:
    with pytest.raises(FieldmarkError, match="no boxes of a part: columns part_x"):
        pointing(bundle, photos, "part")


def test_cells_of_a_box() -> None:
    cells = covered(torch.tensor([[0.125, 0.25, 0.5, 0.75]]), 4, 4)[0]
    expected = [[0, 0, 0, 0], [0.5, 1, 0, 0], [0.5, 1, 0, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(cells, torch.tensor(expected))
    assert float(covered(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 8, 8).mean()) == 1


def test_attention_is_brought_to_one_size() -> None:
    images = torch.zeros(2, 3, 64, 64)
    images[0, :, 16:24, 32:40] = 1
    seen = looked_at(Bright(), images, side=32)
    assert seen.shape == (2, 32, 32)
    place = divmod(int(seen[0].argmax()), 32)
    assert 8 <= place[0] < 12 and 16 <= place[1] < 20
