"""Batches: the right pixels in the right order, bounded work ahead, no thread left, errors where they belong."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fieldmark.data import loader as loaders
from fieldmark.data.augment import Augment
from fieldmark.data.augment.view import augment, view_rng
from fieldmark.data.loader import Loader, Photos, normalise
from fieldmark.runtime import image
from fieldmark.runtime.errors import ImageError
from fieldmark.runtime.preprocess import Preprocess

SPEC = Preprocess(size=24)


@pytest.fixture(scope="module")
def paths(photo_folder: Path) -> list[str]:
    return sorted(str(path) for path in photo_folder.rglob("*.jpg"))


def ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("fieldmark-loader")]


def steps(count: int, each: int = 6, photos: int = 48) -> Iterator[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(0)
    for number in range(count):
        yield rng.integers(0, photos, each), number // 3


def reference(paths: list[str], rows: np.ndarray, epoch: int, seed: int = 0) -> np.ndarray:
    """One photo at a time, by the functions themselves."""
    out = []
    for row in rows:
        data = image.read(paths[row])
        rng = view_rng(seed, image.content_hash(data), epoch)
        out.append(SPEC.normalise(augment(image.decode(data), SPEC, rng, Augment())))
    return np.stack(out)


# -- photos


def test_photos_are_read_once(paths, monkeypatch):
    read: list[str] = []
    real = image.read

    def counted(path: str) -> bytes:
        read.append(path)
        return real(path)

    monkeypatch.setattr(image, "read", counted)
    photos = Photos(paths[:5])
    first = [np.asarray(photos.load(row)) for row in range(5)]
    again = [np.asarray(photos.load(row)) for row in range(5)]
    assert read == paths[:5]
    for path, one, other in zip(paths, first, again, strict=False):
        np.testing.assert_array_equal(one, np.asarray(image.load(path)))
        np.testing.assert_array_equal(one, other)
    assert photos.kept == (5, 5 * 64 * 64 * 3) and len(photos) == 5
    assert photos.content == [image.content_hash(Path(path).read_bytes()) for path in paths[:5]]


def test_photos_fill_the_cache_to_its_limit_and_no_more(paths):
    one = 64 * 64 * 3
    photos = Photos(paths, cache_bytes=int(2.5 * one))
    assert photos.fill(workers=4) == {} and photos.kept == (2, 2 * one)
    none = Photos(paths, cache_bytes=0)
    none.load(0)
    assert none.kept == (0, 0)
    np.testing.assert_array_equal(np.asarray(none.load(0)), np.asarray(photos.load(0)))


def test_the_default_limit_is_a_share_of_free_memory(paths, monkeypatch):
    monkeypatch.setattr(loaders, "memory_bytes", lambda: 3000)
    assert Photos(paths).cache_bytes == 1000


def test_large_jpegs_are_decoded_at_reduced_scale(tmp_path):
    path = tmp_path / "large.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 800, 3), np.uint8)).save(path)
    photos = Photos([str(path)], min_side=100)
    assert photos.load(0).size == (200, 100) and photos.kept[1] == 200 * 100 * 3


def test_a_photo_that_cannot_be_read(paths, tmp_path):
    bad, gone = tmp_path / "bad.jpg", tmp_path / "gone.jpg"
    bad.write_bytes(b"no photo")
    photos = Photos([paths[0], str(bad), str(gone), paths[1]])
    told: list[int] = []
    errors = photos.fill(workers=2, progress=told.append)
    assert list(errors) == [1, 2] and errors[2] == "no such file" and told == [4]
    with pytest.raises(ImageError, match=r"bad\.jpg: not a photo"):
        photos.load(1)
    bad.write_bytes(Path(paths[2]).read_bytes())  # once found bad, it is not tried again
    with pytest.raises(ImageError, match="not a photo"):
        photos.load(1)


def test_content_that_is_given_is_believed(paths):
    photos = Photos(paths[:2], ["abc", ""])
    photos.fill()
    assert photos.content == ["abc", image.content_hash(Path(paths[1]).read_bytes())]
    with pytest.raises(ValueError, match="do not belong together"):
        Photos(paths[:2], ["abc"])


# -- batches


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("cache", [0, None])
def test_batches_are_what_one_photo_after_the_other_gives(paths, workers, cache):
    loader = Loader(Photos(paths, cache_bytes=cache), SPEC, workers=workers)
    for (rows, epoch), batch in zip(steps(7), loader.batches(steps(7)), strict=True):
        assert batch.dtype == torch.float32 and batch.shape == (6, 3, 24, 24)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(batch.numpy(), reference(paths, rows, epoch))
    assert ours() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_normalised_where_they_are_handed_out(paths, workers):
    """The meta device stands for a GPU: it takes bytes, and nothing of it comes back."""
    loader = Loader(Photos(paths), SPEC, workers=workers, device="meta")
    (batch,) = loader.batches(steps(1))
    assert batch.device.type == "meta" and batch.dtype == torch.float32 and batch.shape == (6, 3, 24, 24)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    (raw,) = loader.batches(steps(1), raw=True)
    assert raw.device.type == "cpu" and raw.dtype == torch.uint8


def test_views_do_not_depend_on_the_batch(paths):
    loader = Loader(Photos(paths), SPEC, seed=3, workers=2)
    whole = torch.cat(list(loader.batches([(np.arange(11), 4)])))
    single = torch.cat(list(loader.batches([(np.array([row]), 4) for row in range(11)])))
    assert torch.equal(whole, single)
    other = torch.cat(list(Loader(Photos(paths), SPEC, seed=4, workers=2).batches([(np.arange(11), 4)])))
    assert not torch.equal(whole, other)


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("space", ["rgb", "lab", "grey"])
def test_clean_is_preprocess_bit_for_bit(paths, resize, space):
    spec = Preprocess(size=40, resize=resize, color_space=space, mean=(0.1, 0.5, 0.3), std=(0.9, 0.21, 0.3))
    loader = Loader(Photos(paths, min_side=spec.min_side), spec, workers=2)
    batch = loader.clean(np.array([3, 40, 3]))
    for row, ours_ in zip((3, 40, 3), batch, strict=True):
        np.testing.assert_array_equal(ours_.numpy(), spec(image.load(paths[row], spec.min_side)))
    mixed = list(loader.batches([(np.array([3]), 0), (np.array([3]), None)]))
    assert torch.equal(mixed[1][0], batch[0]) and not torch.equal(mixed[0][0], batch[0])
    assert ours() == []


def test_another_size(paths):
    loader = Loader(Photos(paths), SPEC, Augment.none(), size=17, workers=1)
    expected = SPEC.model_copy(update={"size": 17})(image.load(paths[0]))
    np.testing.assert_array_equal(loader.clean(np.array([0]))[0].numpy(), expected)
    np.testing.assert_array_equal(next(loader.batches([(np.array([0]), 0)]))[0].numpy(), expected)


def test_raw_batches_and_normalise_make_the_same_images(paths):
    loader = Loader(Photos(paths), SPEC, workers=2)
    raw, ready = (next(loader.batches(steps(1), raw=raw)) for raw in (True, False))
    assert raw.dtype == torch.uint8 and raw.shape == (6, 24, 24, 3)
    assert torch.equal(normalise(raw, SPEC), ready)
    with torch.inference_mode():
        normalise(torch.zeros(1, 5, 7, 3, dtype=torch.uint8), SPEC)
    again = normalise(torch.zeros(1, 5, 7, 3, dtype=torch.uint8), SPEC)
    assert again.shape == (1, 3, 5, 7) and not again.is_inference()
    assert normalise(torch.zeros(0, 5, 7, 3, dtype=torch.uint8), SPEC).shape == (0, 3, 5, 7)


def test_every_byte_is_normalised_as_preprocess_does():
    pixels = np.arange(256, dtype=np.uint8)[None, :, None].repeat(2, 0).repeat(3, 2)
    for mean, std in (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.498,) * 3, (0.502,) * 3)):
        spec = Preprocess(mean=mean, std=std)
        np.testing.assert_array_equal(
            normalise(torch.from_numpy(pixels)[None], spec)[0].numpy(), spec.normalise(pixels)
        )


# -- threads


@pytest.mark.parametrize("workers", [1, 3])
def test_work_ahead_is_bounded(paths, workers):
    """However slowly batches are taken, ``ahead`` of them are ready or being made, and no more are asked for."""
    asked = 0

    def endless() -> Iterator[tuple[np.ndarray, int]]:
        nonlocal asked
        for asked in itertools.count(1):
            yield np.array([asked % 48]), 0

    stream = Loader(Photos(paths), SPEC, workers=workers, ahead=2).batches(endless())
    for taken, _ in enumerate(itertools.islice(stream, 20), 1):
        assert taken <= asked <= taken + 2
    stream.close()
    assert ours() == []


def test_batches_are_prepared_while_the_consumer_works(paths):
    photos = Photos(paths)
    stream = Loader(photos, SPEC, workers=2, ahead=2).batches((np.array([row]), 0) for row in range(10))
    next(stream)
    for _ in range(200):
        if photos.kept[0] == 3:
            break
        time.sleep(0.01)
    assert photos.kept[0] == 3  # the one taken and two more
    stream.close()


def test_work_overlaps(paths, monkeypatch):
    """Three workers meet at a barrier, which fewer would never pass; a batch of one too."""
    barrier = threading.Barrier(3, timeout=5)
    real = loaders.augment
    monkeypatch.setattr(loaders, "augment", lambda *a: real(*a) if barrier.wait() >= 0 else None)
    loader = Loader(Photos(paths), SPEC, workers=3)
    assert len(list(loader.batches((np.array([row]), 0) for row in range(6)))) == 6


def test_leaving_early_leaves_no_thread(paths):
    loader = Loader(Photos(paths), SPEC, workers=3)
    stream = loader.batches(steps(1000))
    next(stream)
    assert ours()
    stream.close()
    assert ours() == []
    for _ in loader.batches(steps(1000)):
        break  # dropped, not closed
    assert ours() == []
    loader.batches(steps(3))  # never begun
    assert ours() == []

    def consumer() -> None:
        for _ in loader.batches(steps(1000)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consumer()
    assert ours() == []


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_comes_at_its_place(paths, tmp_path, workers):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff")
    loader = Loader(Photos([*paths[:4], str(bad)]), SPEC, workers=workers)
    seen = 0
    with pytest.raises(ImageError, match=r"bad\.jpg: "):
        for _ in loader.batches([(np.array([row]), 0) for row in (0, 1, 2, 4, 3, 3, 3)]):
            seen += 1
    assert seen == 3 and ours() == [] and list(loader.photos.errors) == [4]


def test_an_error_of_the_sampler_ends_the_threads(paths):
    def broken() -> Iterator[tuple[np.ndarray, int]]:
        yield np.array([0]), 0
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(Loader(Photos(paths), SPEC, workers=2).batches(broken()))
    assert ours() == []


def test_many_threads_read_the_same_photo(paths):
    photos = Photos(paths[:1], cache_bytes=64 * 64 * 3)
    loader = Loader(photos, SPEC, workers=8)
    rows = np.zeros(64, int)
    batch = next(loader.batches([(rows, 0)]))
    assert torch.equal(batch, batch[:1].expand_as(batch)) and photos.kept == (1, 64 * 64 * 3)


@pytest.mark.real
def test_real_photos(data_root):
    real = sorted(str(path) for path in (data_root / "grocery_store").rglob("*.jpg"))[:12]
    spec = Preprocess(size=64)
    loader = Loader(Photos(real, min_side=spec.min_side), spec, workers=2)
    batch = next(loader.batches([(np.arange(12), 0)]))
    assert batch.isfinite().all() and batch.std() > 0.3
    clean = loader.clean(np.arange(12))
    for row in range(12):
        np.testing.assert_array_equal(clean[row].numpy(), spec(image.load(real[row], spec.min_side)))
