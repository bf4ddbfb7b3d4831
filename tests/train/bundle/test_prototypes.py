"""Where a prototype's patch lies in the photo."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fieldmark.nn.prototypes import Patches
from fieldmark.runtime.errors import ImageError
from fieldmark.runtime.preprocess import Preprocess
from fieldmark.train.bundle.prototypes import prototypes


def told(photos: list[Any], resize: Any, patches: Patches, weight: list[list[float]]) -> list[dict[str, Any]]:
    looked: Any = SimpleNamespace(
        paths=[str(path) for path in photos],
        y=np.zeros(len(photos), np.int64),
        classes=["a", "b"],
        graph=SimpleNamespace(preprocess=Preprocess(size=32, resize=resize)),
    )
    method: Any = SimpleNamespace(patches=lambda photos: patches, head=torch.nn.Linear(3, 2))
    method.head.weight.data = torch.tensor(weight)
    return prototypes(method, looked, np.arange(len(photos))[::-1].copy(), 10.0, 1)


@pytest.fixture
def photos(tmp_path: Any) -> list[Any]:
    paths = [tmp_path / name for name in ("0.png", "1.png")]
    for path, size in zip(paths, ((200, 100), (100, 200)), strict=True):
        Image.new("RGB", size).save(path)
    return paths


def test_boxes_in_pixels(photos: list[Any]) -> None:
    """The patch of a place at the middle, and of one at the upper left corner; row 1 was learned first."""
    patches = Patches(
        torch.tensor([0, 2]), torch.tensor([1, 0]), torch.tensor([[0.5, 0.5], [0.125, 0.125]]), (0.25, 0.25)
    )
    weight = [[1.0, 0.0, 0.25], [0.5, 0.0, 0.75]]

    def boxes(resize: str) -> Iterator[tuple[Any, ...]]:
        rows = told(photos, resize, patches, weight)
        assert [(row["prototype"], row["label"], row["weight"]) for row in rows] == [
            (0, "a", 1.0),
            (2, "b", 0.75),
        ]
        assert [row["path"] for row in rows] == [str(photos[0]), str(photos[1])]
        return (tuple(row[name] for name in "xywh") for row in rows)

    assert [*boxes("stretch")] == [(50, 25, 100, 50), (0, 0, 38, 75)]
    assert [*boxes("pad")] == [(50, 0, 100, 100), (0, 0, 25, 75)], "none of the padding"
    assert [*boxes("crop")] == [(75, 25, 50, 50), (0, 50, 38, 38)]


def test_what_speaks_for_no_class_is_left_out(photos: list[Any]) -> None:
    patches = Patches(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.full((2, 2), 0.5), (0.1, 0.1))
    rows = told(photos, "stretch", patches, [[0.0, 0.3, 0.0], [-1.0, 0.0, 0.0]])
    assert [row["prototype"] for row in rows] == [1]


def test_a_photo_that_is_gone_is_told(photos: list[Any]) -> None:
    patches = Patches(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.full((2, 2), 0.5), (0.1, 0.1))
    photos[0].unlink()
    with pytest.raises(ImageError, match="no such file"):
        told(photos, "stretch", patches, [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
