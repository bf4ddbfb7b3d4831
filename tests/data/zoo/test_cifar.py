"""CIFAR's binary archives: records, names, and what an archive may hold besides."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fieldmark.data.zoo import cifar, cifar10, cifar100, get
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError, UsageError

SETS: dict[str, Any] = {"cifar10": cifar10, "cifar100": cifar100}
EVIL = ("../evil.bin", "/tmp/evil.bin", "cifar-10-batches-bin/../../evil.bin")


def record(labels: tuple[int, ...], photo: np.ndarray) -> bytes:
    """Label bytes, then all red, all green, all blue, row by row."""
    return bytes(labels) + b"".join(photo[:, :, channel].tobytes() for channel in range(3))


def pack(path: Path, content: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        link = tarfile.TarInfo("link.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "../../outside"
        tar.addfile(link)
        for name, data in {**dict.fromkeys(EVIL, b"evil"), **content}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Archives with two photos a class, one in train and one in test; the photos by name of their set."""
    rng = np.random.default_rng(0)
    photos = {}
    for name, module in SETS.items():
        photos[name] = rng.integers(0, 256, (2, module.CLASSES, 32, 32, 3), dtype=np.uint8)
        parts = [
            [record((c,) if name == "cifar10" else (c // 5, c), photo) for c, photo in enumerate(split)]
            for split in photos[name]
        ]
        names = "\n".join(f"class {c}" for c in range(module.CLASSES)).encode() + b"\n\n"
        if name == "cifar10":
            batches = {f"data_batch_{k}.bin": b"".join(parts[0][2 * k - 2 : 2 * k]) for k in range(1, 6)}
            content = {**batches, "test_batch.bin": b"".join(parts[1]), "batches.meta.txt": names}
        else:
            coarse = "\n".join(f"rank {c}" for c in range(20)).encode()
            content = {
                "train.bin": b"".join(parts[0]),
                "test.bin": b"".join(parts[1]),
                "fine_label_names.txt": names,
                "coarse_label_names.txt": coarse,
            }
        path = tmp_path / module.ARCHIVE.name
        pack(path, {f"{module.FOLDER}/{key}": value for key, value in content.items()})
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        new = dataclasses.replace(module.ARCHIVE, sha256=digest, bytes=path.stat().st_size)
        monkeypatch.setattr(module, "ARCHIVE", new)
    return photos


@pytest.mark.parametrize("name", SETS)
def test_photos_and_labels(small: dict[str, np.ndarray], tmp_path: Path, name: str) -> None:
    root = get(name).write(tmp_path / "out", source=str(tmp_path))
    rows = list(csv.DictReader((root / "metadata.csv").open(encoding="utf-8")))
    classes = SETS[name].CLASSES
    assert len(rows) == len(Catalog.read(root)) == 2 * classes
    for row in rows:
        number = int(row["label"].removeprefix("class "))
        with Image.open(root / row["file_name"]) as image:
            photo = small[name][["train", "test"].index(row["split"]), number]
            assert np.array_equal(np.asarray(image), photo)
        if name == "cifar100":
            assert row["superclass"] == f"rank {number // 5}"
    assert not list(tmp_path.rglob("evil*")) and not list(tmp_path.rglob("link*"))


def test_fetched(
    server: Any, small: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["c.tar.gz"] = (tmp_path / cifar10.ARCHIVE.name).read_bytes()
    here = dataclasses.replace(cifar10.ARCHIVE, addresses=(f"{server.address}c.tar.gz",))
    monkeypatch.setattr(cifar10, "ARCHIVE", here)
    assert len(Catalog.read(cifar10.write(tmp_path / "out", per_class=1))) == 20


def test_other_archives(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no cifar-10-binary\.tar\.gz"):
        cifar10.write(tmp_path / "out", source=str(tmp_path / "nowhere"))
    path = tmp_path / cifar10.ARCHIVE.name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FieldmarkError, match="SHA-256 differs"):
        cifar10.write(tmp_path / "out", source=str(path))
    with pytest.raises(FieldmarkError, match="cannot read"):
        cifar.members(path, ["none"])
    pack(path, {"a": b"1"})
    assert cifar.members(path, ["a"]) == {"a": b"1"}
    for name in ("b", "link.bin"):
        with pytest.raises(FieldmarkError, match=f"holds no {name}"):
            cifar.members(path, ["a", name])


def test_records() -> None:
    photo = np.arange(cifar.PIXELS, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3)
    pictures, labels = cifar.records(record((3,), photo) + record((9,), photo[::-1]), 1, 10)
    assert labels.tolist() == [3, 9] and np.array_equal(pictures[1], photo[::-1])
    for content, words in (
        (b"", "0 bytes"),
        (b"x" * 3072, "records of 3073"),
        (record((10,), photo), "label 10"),
    ):
        with pytest.raises(FieldmarkError, match=words):
            cifar.records(content, 1, 10)
    with pytest.raises(FieldmarkError, match="names 2 classes, not 3"):
        cifar.names(b"a\nb\n", 3)
    with pytest.raises(FieldmarkError, match="superclasses"):
        cifar100._superclasses(record((1, 1), photo) + record((2, 1), photo))
