"""Near-duplicates are found in all their forms; look-alikes, textures and flat photos stay apart."""

from __future__ import annotations

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from fieldmark.data import duplicates
from fieldmark.data.duplicates import Fingerprints, fingerprints, groups, near_pairs, perceptual_hash
from fieldmark.runtime.image import content_hash


def texture(seed: int, size: int = 200, cell: int = 25, spread: float = 40) -> Image.Image:
    """A smooth random picture: coarse noise, enlarged."""
    noise = np.random.default_rng(seed).normal(128, spread, (cell, cell, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def same(numbers: np.ndarray) -> set[frozenset[int]]:
    """Groups of more than one, as sets of rows."""
    found: dict[int, list[int]] = {}
    for row, number in enumerate(numbers.tolist()):
        found.setdefault(number, []).append(row)
    return {frozenset(rows) for rows in found.values() if len(rows) > 1}


def prints_of(pictures: list[Image.Image]) -> Fingerprints:
    grey = np.stack([np.asarray(p.convert("L").resize((32, 32), Image.Resampling.BOX)) for p in pictures])
    thumbs = np.rint(grey.reshape(-1, 8, 4, 8, 4).mean((2, 4))).astype(np.uint8)
    names = np.array([content_hash(p.tobytes()) for p in pictures])
    return Fingerprints(names, perceptual_hash(grey), thumbs, [None] * len(pictures))


def test_copies_of_every_kind_are_found(tmp_path: Path):
    photo = texture(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    copies = {
        "original.jpg": (photo, {"quality": 95}),
        "recompressed.jpg": (photo, {"quality": 30}),
        "small.jpg": (photo.resize((90, 90)), {}),
        "large.png": (photo.resize((500, 500)), {}),
        "brighter.jpg": (ImageEnhance.Brightness(photo).enhance(1.2), {}),
        "grey.png": (photo.convert("L"), {}),
        "cropped.jpg": (photo.crop((2, 2, 198, 198)), {}),
        "turned.jpg": (photo.transpose(Image.Transpose.ROTATE_90), {"exif": exif}),
    }
    for name, (picture, options) in copies.items():
        picture.save(tmp_path / name, **options)
    others = [f"other{seed}.jpg" for seed in range(2, 12)]
    for seed, name in enumerate(others, 2):
        texture(seed).save(tmp_path / name)
    prints = fingerprints([tmp_path / name for name in [*copies, *others]], workers=2)
    assert prints.errors == [None] * len(prints)
    assert same(groups(prints)) == {frozenset(range(len(copies)))}


def test_equal_bytes_join_even_where_flat(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64), "white").save(tmp_path / name)
    Image.new("RGB", (65, 64), "white").save(tmp_path / "c.png")
    prints = fingerprints([tmp_path / name for name in ("a.png", "c.png", "b.png")], workers=1)
    assert prints.content[0] == content_hash((tmp_path / "a.png").read_bytes()) == prints.content[2]
    assert groups(prints).tolist() == [0, 1, 0]


def test_unreadable_photos_are_alone_and_say_why(tmp_path):
    texture(0).save(tmp_path / "good.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    buffer = io.BytesIO()
    texture(0).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:-200])
    names = ["empty.jpg", "good.jpg", "text.jpg", "gone.jpg", "cut.jpg", "good.jpg"]
    told: list[int] = []
    prints = fingerprints([str(tmp_path / name) for name in names], workers=2, progress=told.append)
    assert prints.errors == [
        "file is empty",
        None,
        "not a photo: its content is text, not an image",
        "no such file",
        "truncated file",
        None,
    ]
    assert groups(prints).tolist() == [0, 1, 2, 3, 4, 1] and sum(told) == 6
    assert prints.readable.tolist() == [False, True, False, False, False, True]


def test_no_photos_at_all():
    prints = fingerprints([])
    assert len(prints) == 0 and groups(prints).tolist() == []


def test_extra_groups_chain(tmp_path):
    pictures = [texture(seed) for seed in range(6)]
    pictures[3] = pictures[0].resize((180, 180))
    prints = prints_of(pictures)
    assert groups(prints).tolist() == [0, 1, 2, 0, 3, 4]
    assert groups(prints, ["x", None, "y", "y", "z", 5]).tolist() == [0, 1, 0, 0, 2, 3]
    assert groups(prints, [None] * 6).tolist() == groups(prints).tolist()


def test_flat_and_noisy_photos_stay_apart():
    chance = np.random.default_rng(0)
    for spread in (0.5, 3, 20):
        pictures = [
            Image.fromarray(chance.normal(128, spread, (200, 200)).clip(0, 255).astype(np.uint8))
            for _ in range(200)
        ]
        assert same(groups(prints_of(pictures))) == set()


def test_one_background_does_not_make_one_group():
    scene = np.asarray(texture(3).convert("L")).astype(float)
    chance = np.random.default_rng(0)
    pictures = []
    for _ in range(400):
        photo = scene + chance.normal(0, 3, scene.shape)
        y, x = chance.integers(0, 160, 2)
        photo[y : y + 30, x : x + 30] = chance.integers(0, 255)
        pictures.append(Image.fromarray(photo.clip(0, 255).astype(np.uint8)))
    prints = prints_of(pictures)
    assert np.bincount(groups(prints, max_group=10**9)).max() > 100  # the danger is real
    assert np.bincount(groups(prints)).max() <= duplicates.MAX_GROUP


def test_hash_equals_scipys_transform():
    fft = pytest.importorskip("scipy.fft")
    grey = np.random.default_rng(0).integers(0, 255, (20, 32, 32)).astype(np.uint8)
    waves = fft.dctn(grey.astype(float), axes=(1, 2), norm="ortho")[:, :8, :8].reshape(20, -1)[:, 1:]
    bits = waves > np.median(waves, axis=1, keepdims=True)
    expected = [sum(1 << place for place in np.flatnonzero(row)) for row in bits.tolist()]
    assert perceptual_hash(grey).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 8), st.integers(0, 60))
def test_search_equals_brute_force(seed, distance, count):
    chance = np.random.default_rng(seed)
    seeds = chance.integers(0, 2**63, max(count // 4, 1), dtype=np.uint64)
    hashes = seeds[chance.integers(0, len(seeds), count)]
    for _ in range(9):  # flip up to nine bits of each
        flip = np.uint64(1) << chance.integers(0, 63, count).astype(np.uint64)
        hashes = np.where(chance.random(count) < 0.6, hashes ^ flip, hashes)
    left, right = near_pairs(hashes, distance)
    values = hashes.tolist()
    expected = {
        (i, j) for i, j in combinations(range(count), 2) if (values[i] ^ values[j]).bit_count() <= distance
    }
    assert set(zip(left.tolist(), right.tolist(), strict=True)) == expected


def test_search_refuses_what_it_cannot_promise():
    with pytest.raises(ValueError):
        near_pairs(np.zeros(2, np.uint64), 9)


def test_a_crowd_of_equal_hashes_is_bounded():
    left, _ = near_pairs(np.full(20_000, 12345, np.uint64))
    assert 20_000 < len(left) <= 20_000 * 64


@pytest.mark.real
@pytest.mark.parametrize(
    "name, pairs, largest", [("steel_defects", 1, 2), ("grocery_store", 36, 9), ("cub100", 4, 2)]
)
def test_real_photos(data_root, name, pairs, largest):
    """Judged by eye: textures stay apart, bursts and re-crops join, and no group has two labels."""
    from fieldmark.runtime.catalog import Catalog

    if not (data_root / name).is_dir():
        pytest.skip(f"no {name}")
    catalog = Catalog.read(data_root / name)
    found = same(groups(fingerprints(catalog.paths)))
    labels = catalog.labels
    assert all(len({labels[row] for row in rows}) == 1 for rows in found)
    assert abs(len(found) - pairs) <= pairs // 5 and max(map(len, found)) <= largest + largest // 3
