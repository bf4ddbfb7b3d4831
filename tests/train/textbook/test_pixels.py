"""Pixels in memory: what a batch shows, by a slow formula, and by the loader that fine-tuning uses."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fieldmark.data.augment import Augment
from fieldmark.data.loader import Loader, Photos
from fieldmark.runtime.preprocess import Preprocess
from fieldmark.train.textbook import pixels
from fieldmark.train.textbook.pixels import PixelFeed, longest_side, moved, read_pixels

SPEC = Preprocess(size=10, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, paint_photos: Any) -> list[str]:
    folder = paint_photos(tmp_path_factory.mktemp("pixels"), classes=2, each=6, size=14)
    return sorted(map(str, folder.rglob("*.jpg")))


def feed(paths: list[str], tmp_path: Path, settings: Augment, shift: float = 0.0) -> PixelFeed:
    read = read_pixels(paths, SPEC, tmp_path / "pixels")
    rows = np.array([0, 2, 4, 6, 8, 10]), np.array([1, 3, 5, 7])
    own = [Photos([paths[i] for i in part], [read.content[i] for i in part]) for part in rows]
    return PixelFeed(read.images, rows, (own[0], own[1]), SPEC, settings, shift=shift, seed=3, workers=1)


def test_moves_by_hand():
    """Every pixel is the one so many rows and columns away, or the nearest there is; mirrored about half the time."""
    chance = np.random.default_rng(0)
    views, rows = chance.integers(0, 256, (6, 9, 9, 3), np.uint8), np.array([4, 40, 41, 7, 11, 49])
    out = moved(views, rows, 50, 2, True, 5, 1)
    by, mirrored = pixels._moves(50, 2, 5, 1)
    assert set(by.ravel().tolist()) == {-2, -1, 0, 1, 2} and 10 < mirrored.sum() < 40
    for n, row in enumerate(rows):
        for y in range(9):
            for x in range(9):
                across = 8 - x if mirrored[row] else x
                source = np.clip([y + by[row, 0], across + by[row, 1]], 0, 8)
                assert (out[n, y, x] == views[n, source[0], source[1]]).all()


def test_moves_are_a_function_of_seed_epoch_and_row():
    views = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), np.uint8)
    rows = np.arange(4)
    one = moved(views, rows, 20, 3, True, 0, 0)
    assert (moved(views[::-1], rows[::-1], 20, 3, True, 0, 0)[::-1] == one).all(), "not of the batch"
    assert any((moved(views, rows, 20, 3, True, *other) != one).any() for other in ((1, 0), (0, 1)))
    assert (moved(views, rows, 20, 3, True, 1, 0) != one).any()
    assert (moved(views, rows, 20, 3, True, 0, 1) != one).any()
    assert moved(views, rows, 20, 0, False, 0, 0) is views


def test_without_views_it_is_the_loader(paths, tmp_path):
    """Bit for bit what `Loader.clean` gives, in training and of held-out photos."""
    ours = feed(paths, tmp_path, Augment.none())
    rows = np.array([5, 0, 3])
    (batch,) = ours.batches([(rows, 4)])
    expected = Loader(ours.train.photos, SPEC, workers=0).clean(rows)
    assert torch.equal(batch, expected) and batch.stride() == expected.stride()
    held = torch.cat(list(ours.held_out(batch=3)))
    assert torch.equal(held, Loader(ours.held.photos, SPEC, workers=0).clean(np.arange(4)))
    shares = [torch.cat(list(ours.held_out(rank, 2))) for rank in (0, 1)]
    assert sorted(map(float, torch.cat(shares).sum((1, 2, 3)))) == sorted(map(float, held.sum((1, 2, 3))))


@pytest.mark.parametrize("settings", [Augment.none(), Augment(flip=False), Augment(flip=True, rotate=20)])
def test_views_depend_on_the_epoch_alone(paths, tmp_path, settings):
    """However many batches lie before, and whether or not they are prepared ahead."""
    ours = feed(paths, tmp_path, settings, shift=0.2)
    assert ours.plain == (settings == Augment.none())
    steps = [(np.array([0, 1, 2]), 0), (np.array([3, 4, 5]), 0), (np.array([0, 4]), 1)]
    whole = list(ours.batches(steps))
    (last,) = ours.batches(steps[2:])
    assert [len(batch) for batch in whole] == [3, 3, 2] and torch.equal(whole[2], last)
    assert not torch.equal(whole[0][0], whole[2][0])
    endless = ours.batches((np.array([number % 6]), number) for number in count())
    assert len([next(endless) for _ in range(5)]) == 5
    endless.close()  # type: ignore[attr-defined]


def test_mirroring_alone_needs_no_loader(paths, tmp_path):
    ours = feed(paths, tmp_path, Augment.none().model_copy(update={"flip": True, "mixup": 0.2}))
    assert ours.plain
    clean = Loader(ours.train.photos, SPEC, workers=0).clean(np.arange(6))
    seen = {False: 0, True: 0}
    for epoch in range(4):
        (batch,) = ours.batches([(np.arange(6), epoch)])
        for view, photo in zip(batch, clean, strict=True):
            mirrored = torch.equal(view, photo.flip(2))
            assert mirrored or torch.equal(view, photo)
            seen[mirrored] += 1
    assert min(seen.values()) > 4


def test_unreadable_photos_and_a_full_memory(paths, tmp_path, monkeypatch):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"nothing")
    told: list[int] = []
    read = read_pixels([*paths, str(bad)], SPEC, tmp_path / "a", progress=told.append)
    assert list(read.errors) == [12] and not read.images[12].any() and told[-1] == 13
    monkeypatch.setattr(pixels, "memory_bytes", lambda: 100)
    on_disk = read_pixels([*paths, str(bad)], SPEC, tmp_path / "b")
    assert isinstance(on_disk.images, np.memmap) and (on_disk.images == read.images).all()
    assert on_disk.content == read.content


def test_longest_side(paths, tmp_path):
    assert longest_side(paths) == 14
    (tmp_path / "bad.png").write_bytes(b"")
    assert longest_side([str(tmp_path / "bad.png")]) == 0
