"""IDX files, and the two sets that are made of them."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fieldmark.data.zoo import fashion_mnist, get, mnist
from fieldmark.data.zoo.idx import IdxFile, parse
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError, UsageError

SETS: dict[str, Any] = {"mnist": mnist, "fashion-mnist": fashion_mnist}


def idx(array: np.ndarray) -> bytes:
    """The format, written out by hand."""
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("shape", [(3,), (2, 4, 5), (0, 28, 28)])
def test_parse(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(parse(idx(array)), array) and parse(idx(array)).shape == shape


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "not an IDX"),
        (b"\x89PNG and so on", "not an IDX"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "unsigned bytes"),
        (b"\0\0\x08\x03\0\0\0\x01", "ends within its header"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], "5 values, its header says 6"),
        (idx(np.zeros((2, 3), np.uint8)) + b"\0", "7 values"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "0 values"),  # 2**96 would be asked for
    ],
)
def test_what_is_no_idx(content: bytes, words: str) -> None:
    with pytest.raises(FieldmarkError, match=words):
        parse(content)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four small IDX files; both sets hold them for the published ones."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "files"
    folder.mkdir()
    files = {}
    for split, stem, count in (("train", "train", 40), ("test", "t10k", 20)):
        arrays = {
            f"{stem}-images-idx3-ubyte": rng.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            f"{stem}-labels-idx1-ubyte": np.arange(count, dtype=np.uint8) % 10,
        }
        made = []
        for name, array in arrays.items():
            packed = gzip.compress(idx(array))
            (folder / f"{name}.gz").write_bytes(packed)
            sums = [hashlib.sha256(content).hexdigest() for content in (idx(array), packed)]
            made.append(IdxFile(name, array.shape, sums[0], len(packed), sums[1]))
        files[split] = tuple(made)
    for module in SETS.values():
        monkeypatch.setattr(module, "FILES", files)
    return folder


def check(root: Path, folder: Path, per_split: dict[str, int]) -> None:
    rows = list(csv.DictReader((root / "metadata.csv").open(encoding="utf-8")))
    assert len(Catalog.read(root)) == len(rows) == sum(per_split.values())
    for split, stem in (("train", "train"), ("test", "t10k")):
        photos = parse(gzip.decompress((folder / f"{stem}-images-idx3-ubyte.gz").read_bytes()))
        mine = [row for row in rows if row["split"] == split]
        assert len(mine) == per_split[split]
        for row in mine:
            number = int(Path(row["file_name"]).stem)
            with Image.open(root / row["file_name"]) as image:
                assert image.format == "PNG" and np.array_equal(np.asarray(image), photos[number])


@pytest.mark.parametrize("name", SETS)
def test_from_files(small: Path, tmp_path: Path, name: str) -> None:
    done: list[tuple[int, int]] = []
    root = get(name).write(tmp_path / "out", source=str(small), progress=lambda *now: done.append(now))
    check(root, small, {"train": 40, "test": 20})
    assert done[-1] == (60, 60)
    rows = list(csv.DictReader((root / "metadata.csv").open(encoding="utf-8")))
    names = SETS[name].NAMES
    assert all(row["label"] == names[int(Path(row["file_name"]).stem) % 10] for row in rows)
    assert Catalog.read(root).classes == sorted(names)


def test_plain_and_otherwise_spelt_files(small: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(small.iterdir())):
        content = gzip.decompress(path.read_bytes())
        name = path.stem.replace("-idx", ".idx") if number % 2 else path.stem
        (small / name).write_bytes(content)
        if number != 2:
            path.unlink()
    root = mnist.write(tmp_path / "out", source=str(small), per_class=2)
    rows = list(csv.DictReader((root / "metadata.csv").open(encoding="utf-8")))
    assert len(rows) == 2 * 10 * 2
    numbers = [int(Path(row["file_name"]).stem) for row in rows if row["split"] == "train"]
    assert sorted(numbers) == list(range(20)), "the first of each class"


def test_fetched(server: Any, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files = {f"data/{path.name}": path.read_bytes() for path in small.iterdir()}
    monkeypatch.setattr(mnist, "ADDRESSES", (f"{server.address}gone/", f"{server.address}data/"))
    fetched: list[tuple[int, int]] = []
    check(
        mnist.write(tmp_path / "a", download=lambda *now: fetched.append(now)),
        small,
        {"train": 40, "test": 20},
    )
    assert fetched[-1][0] == fetched[-1][1] and len(server.asked) == 8
    mnist.write(tmp_path / "b")
    assert len(server.asked) == 8, "from the cache"


def test_refusals(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="per_class is -1"):
        mnist.write(tmp_path / "out", source=str(small), per_class=-1)
    images = small / "train-images-idx3-ubyte.gz"
    good = images.read_bytes()
    for content, words in (
        (gzip.compress(b"x" * 100), "SHA-256 differs"),
        (gzip.compress(gzip.decompress(good) + b"\0" * 5_000_000, 1), "SHA-256 differs"),
        (good[:-20], "cannot read"),
        (b"no gzip", "cannot read"),
    ):
        images.write_bytes(content)
        with pytest.raises(FieldmarkError, match=words):
            mnist.write(tmp_path / "out", source=str(small))
    images.unlink()
    with pytest.raises(UsageError, match="no train-images-idx3-ubyte or"):
        mnist.write(tmp_path / "out", source=str(small))
    assert not (tmp_path / "out").exists()
    (small / "train-images-idx3-ubyte").write_bytes(gzip.decompress(good))
    (tmp_path / "file").write_text("")
    with pytest.raises(FieldmarkError, match="cannot be written"):
        mnist.write(tmp_path / "file", source=str(small))


@pytest.mark.parametrize("name", SETS)
def test_the_published_numbers_fit_together(name: str) -> None:
    files = [file for pair in SETS[name].FILES.values() for file in pair]
    assert sum(file.packed_bytes for file in files) == get(name).download
    assert sum(file.shape[0] for file in files if len(file.shape) == 3) == get(name).photos
    assert len(SETS[name].NAMES) == get(name).classes
    assert len({digest for file in files for digest in (file.sha256, file.packed_sha256)}) == 8


@pytest.mark.real
@pytest.mark.parametrize("name", SETS)
def test_the_published_files(name: str, tmp_path: Path) -> None:
    """FIELDMARK_IDX holds folders ``mnist`` and ``fashion-mnist`` with the published files."""
    folder = Path(os.environ.get("FIELDMARK_IDX", "nowhere")) / name
    if not folder.is_dir():
        pytest.skip("set FIELDMARK_IDX")
    root = get(name).write(tmp_path / "out", source=str(folder), per_class=3)
    assert len(Catalog.read(root)) == 60
