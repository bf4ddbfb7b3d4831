"""The offline real set, and the list of sets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldmark.data import zoo
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError, UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.get("digits").write(tmp_path_factory.mktemp("digits"), size=32)


def test_catalog(folder):
    catalog = Catalog.read(folder)
    digits = zoo.get("digits")
    assert len(catalog) == digits.photos and catalog.classes == list("0123456789")
    assert len(catalog.classes) == digits.classes
    for label, count in Counter(catalog.labels).items():
        shares = Counter(
            split for name, split in zip(catalog.labels, catalog.splits, strict=True) if name == label
        )
        assert shares["train"] == round(0.6 * count) and shares["val"] == round(0.1 * count)


def test_pixels_are_the_digits(folder):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for index in (0, 700, 1796):
        with Image.open(folder / str(bunch.target[index]) / f"{index:04d}.png") as image:
            small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), float)
        ink = 16 - small * 16 / 255
        assert np.corrcoef(ink.ravel(), bunch.images[index].ravel())[0, 1] > 0.98


def test_seed_deals_anew(folder, tmp_path):
    again = zoo.get("digits").write(tmp_path / "again", size=8)
    other = zoo.get("digits").write(tmp_path / "other", size=8, seed=1)
    table = (folder / "metadata.csv").read_text()
    assert (again / "metadata.csv").read_text() == table != (other / "metadata.csv").read_text()


def test_refusals(tmp_path):
    with pytest.raises(UsageError, match="8 pixels"):
        zoo.get("digits").write(tmp_path, size=7)
    (tmp_path / "file").write_text("")
    with pytest.raises(FieldmarkError, match="cannot be written"):
        zoo.get("digits").write(tmp_path / "file", size=8)


def test_list(tmp_path):
    assert set(zoo.DATASETS) >= {"digits", "look-alikes"}
    for name, one in zoo.DATASETS.items():
        assert one.name == name and one.title and one.licence and one.source and one.classes > 1
    done = []
    zoo.get("look-alikes").write(
        tmp_path, n_species=2, per_species=1, size=64, unknown=0, progress=lambda *now: done.append(now)
    )
    assert done[-1] == (2, 2)
    with pytest.raises(UsageError, match='did you mean "digits"'):
        zoo.get("digit")
