"""Where a model looks, laid over the middle squares of photos."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from method_tests import backbone_of
from PIL import Image

from fieldmark import Recognizer
from fieldmark.data.augment.geometry import shown
from fieldmark.explain import attention
from fieldmark.explain.attention import SIDE, in_middles, middle
from fieldmark.explain.pointing import looked_at
from fieldmark.methods.plain import Plain
from fieldmark.methods.restore import restore
from fieldmark.runtime.bundle import Bundle
from fieldmark.runtime.preprocess import Preprocess


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(400, 200), (200, 400), (200, 200)])
def test_a_map_lands_where_the_photo_has_it(resize: Any, size: tuple[int, int]) -> None:
    """A map that is the brightness of what the network sees is, in the middle square, the brightness there."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    photo = Image.fromarray((255 * (0.6 * x + 0.4 * y)).astype(np.uint8)).convert("RGB")
    preprocess = Preprocess(size=64, resize=resize, crop_pct=0.8, interpolation="bilinear")
    heat = np.asarray(preprocess.geometry(photo), np.float32)[..., 0] / 255
    found = middle(torch.from_numpy(heat.copy()), shown(size, preprocess), size)
    short = min(size)
    left, top = (size[0] - short) // 2, (size[1] - short) // 2
    square = photo.crop((left, top, left + short, top + short)).resize((SIDE, SIDE), Image.Resampling.BOX)
    expected = np.asarray(square, np.float32)[..., 0] / 255
    seen = np.ones((SIDE, SIDE), bool)
    if resize == "crop":  # a fifth of the side is not seen
        edge = (np.arange(SIDE) + 0.5) / SIDE
        within = (edge > 0.1) & (edge < 0.9)
        seen = within[:, None] & within
        assert (found[~seen] == 0).all()
    np.testing.assert_allclose(found[seen], expected[seen], atol=0.03)


def test_photos_of_any_shape_and_bad_ones(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BATCH", 3)
    flags: dict[str, Any] = {"backbone": "test_efficientnet", "size": 64, "pretrained": False}
    Recognizer(report=False, **flags).fit(photo_folder, out=tmp_path / "run")
    bundle = Bundle(tmp_path / "run/model")
    photos = [str(path) for path in sorted(photo_folder.rglob("*.jpg"))[:7]]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photo")
    found = in_middles(bundle, [*photos[:3], str(bad), *photos[3:]])
    assert list(found) == photos
    method: Any = restore(bundle)
    for path, heat in found.items():
        assert heat.shape == (SIDE, SIDE) and heat.dtype == np.float32 and 0 <= heat.min() <= heat.max() <= 1
        with Image.open(path) as photo:
            pixels = torch.from_numpy(bundle.section.preprocess(photo.convert("RGB")))[None]
            size = photo.size
        seen = looked_at(method, pixels)[0]
        expected = middle(seen / seen.max(), shown(size, bundle.section.preprocess), size)
        np.testing.assert_allclose(heat, expected, atol=1e-3)
    assert in_middles(bundle, [str(bad)]) == {}


def test_where_no_place_speaks_for_the_answer(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [str(path) for path in sorted(photo_folder.rglob("*.jpg"))[:3]]
    maps = torch.rand(3, 64, 64)
    maps[0], maps[2, 0, 0] = 0, torch.inf
    monkeypatch.setattr(attention, "restore", lambda bundle: Plain(backbone_of("test_resnet", 64), ()))
    monkeypatch.setattr(attention, "looked_at", lambda method, pixels: maps)
    bundle: Any = SimpleNamespace(section=SimpleNamespace(preprocess=Preprocess(size=64)))
    assert list(in_middles(bundle, photos)) == [photos[1]]


def test_a_network_that_does_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "restore", lambda bundle: torch.nn.Identity())
    assert in_middles(Any, ["a.jpg"]) == {}
