"""Every source becomes the same table; what cannot be used is said in one line or listed."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from sources import rows, table, touch, why_not

from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError


class TestFolders:
    def test_classes(self, tmp_path):
        touch(tmp_path, "b/2.JPG", "b/1.png", "a/x.heic", "a/deeper/y.webp", "c/notes.txt", "a/Thumbs.db")
        touch(tmp_path, ".hidden/z.jpg", "a/._x.jpg", "a/.DS_Store", "__MACOSX/a/x.jpg", "readme.md")
        catalog = Catalog.read(tmp_path)
        assert rows(catalog, tmp_path) == [
            ("a/x.heic", "a", None),
            ("a/deeper/y.webp", "a", None),
            ("b/1.png", "b", None),
            ("b/2.JPG", "b", None),
        ]
        assert catalog.classes == ["a", "b"] and not catalog.has_split and catalog.root == tmp_path
        assert catalog.skipped == [] and len(catalog) == 4

    @pytest.mark.parametrize("val", ["val", "valid", "validation", "Valid"])
    def test_splits(self, tmp_path, val):
        touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", f"{val}/a/2.jpg", "test/b/3.jpg", "docs/readme.txt")
        assert sorted(rows(Catalog.read(tmp_path), tmp_path)) == sorted(
            [
                ("test/b/3.jpg", "b", "test"),
                ("train/a/1.jpg", "a", "train"),
                ("train/b/1.jpg", "b", "train"),
                (f"{val}/a/2.jpg", "a", "val"),
            ]
        )

    def test_a_class_may_be_called_train(self, tmp_path):
        touch(tmp_path, "train/1.jpg", "bus/1.jpg", "test/1.jpg")
        assert Catalog.read(tmp_path).classes == ["bus", "test", "train"]
        touch(tmp_path / "2", "train/steam/1.jpg", "bus/1.jpg")
        assert Catalog.read(tmp_path / "2").classes == ["bus", "train"]

    def test_folders_beside_splits_are_named(self, tmp_path):
        touch(tmp_path, "train/a/1.jpg", "test/a/2.jpg", "unsorted/9.jpg", "test/loose.jpg")
        catalog = Catalog.read(touch(tmp_path, "top.jpg") / ".")
        assert len(catalog) == 4  # test holds a loose photo, so these are classes…
        (tmp_path / "test/loose.jpg").unlink()
        catalog = Catalog.read(tmp_path)  # …and without it, splits
        assert catalog.splits == ["test", "train"]
        assert [(Path(s.path).name, s.reason) for s in catalog.skipped] == [
            ("unsorted", "not a split folder (train, val, test): left out"),
            ("top.jpg", "in no class folder"),
        ]

    def test_unlabelled_test_folder_is_listed(self, tmp_path):
        catalog = Catalog.read(touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/1.jpg", "test/2.jpg"))
        assert catalog.splits == ["train", "train"] and len(catalog.skipped) == 2

    def test_split_folders_without_classes_are_refused(self, tmp_path):
        assert "hold no class folders" in why_not(touch(tmp_path, "train/1.jpg", "test/1.jpg"))

    @pytest.mark.parametrize(
        "name",
        [
            "with space",
            "it's",
            'say "hi"',
            "semi;colon, comma",
            "Ä ö",
            "雪豹",
            "عقاب",
            "🦊 fox",
            "NA",
            "null",
            "007",
        ]
        + ([] if os.name == "nt" else ["two\nlines", "back\\slash", "tab\there", " edge ", "a\r\nb"]),
    )
    def test_any_class_name_survives(self, tmp_path, name):
        try:
            touch(tmp_path, f"{name}/1.jpg", "other/1.jpg")
        except OSError:
            pytest.skip("this file system cannot hold the name")
        catalog = Catalog.read(tmp_path)
        assert sorted(catalog.classes) == sorted([name, "other"])
        catalog.write(tmp_path / "out.csv")
        assert Catalog.read(tmp_path / "out.csv") == catalog

    def test_labels_are_in_nfc(self, tmp_path):
        touch(tmp_path, unicodedata.normalize("NFD", "Café") + "/1.jpg")
        assert Catalog.read(tmp_path).classes == [unicodedata.normalize("NFC", "Café")]
        written = table(tmp_path, "path,label\n1.jpg," + unicodedata.normalize("NFD", "Café"), "t.csv")
        assert Catalog.read(written).classes == [unicodedata.normalize("NFC", "Café")]

    def test_links_are_followed_and_cycles_end(self, tmp_path):
        touch(tmp_path / "data", "a/1.jpg", "b/2.jpg")
        touch(tmp_path / "else", "3.jpg", "deep/4.jpg")
        try:
            (tmp_path / "data/c").symlink_to(tmp_path / "else", target_is_directory=True)
            (tmp_path / "data/d").symlink_to(tmp_path / "else", target_is_directory=True)
            (tmp_path / "data/a/up").symlink_to(tmp_path / "data", target_is_directory=True)
            (tmp_path / "data/a/self").symlink_to(tmp_path / "data/a/self", target_is_directory=True)
            (tmp_path / "else/deep/back").symlink_to(tmp_path / "else", target_is_directory=True)
            (tmp_path / "data/b/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
        except OSError:
            pytest.skip("no symbolic links here")
        catalog = Catalog.read(tmp_path / "data")
        assert catalog.labels == ["a", "b", "b", "c", "c", "d", "d"]
        everything = Catalog.read(tmp_path / "data", labelled=False)
        assert len(everything) == 5  # each real folder once

    @pytest.mark.skipif(os.name == "nt" or not hasattr(os, "fsencode"), reason="names are text here")
    def test_names_that_are_no_text_are_listed(self, tmp_path):
        touch(tmp_path, "a/1.jpg")
        try:
            (tmp_path / "a" / os.fsdecode(b"caf\xe9.jpg")).touch()
        except OSError:
            pytest.skip("this file system wants text")
        catalog = Catalog.read(tmp_path)
        assert len(catalog) == 1
        assert catalog.skipped[0].reason == "its name is not valid UTF-8"
        catalog.skipped[0].path.encode()

    def test_what_is_missing_is_said(self, tmp_path):
        assert why_not(tmp_path / "nowhere") == f"no such file or folder: {tmp_path / 'nowhere'}"
        assert why_not("") == "no photos: the source's name is empty"
        words = why_not(touch(tmp_path, "a/notes.txt"))
        assert words.startswith("no photos in") and ".jpg" in words and "metadata.csv" in words
        assert "no class folders" in why_not(touch(tmp_path / "flat", "1.jpg", "2.jpg"))
        assert "one photo" in why_not(tmp_path / "flat/1.jpg")
        assert "no catalog" in why_not(tmp_path / "a/notes.txt")
        assert "no photos in" in why_not(tmp_path / "a", labelled=False)

    def test_without_labels(self, tmp_path):
        touch(tmp_path, "2.jpg", "a/1.jpg", "train/x/9.png", "notes.txt")
        catalog = Catalog.read(tmp_path, labelled=False)
        assert [row[0] for row in rows(catalog, tmp_path)] == ["2.jpg", "a/1.jpg", "train/x/9.png"]
        assert catalog.classes == [] and catalog.labels == [None] * 3
        one = Catalog.read(tmp_path / "2.jpg", labelled=False)
        assert one.paths == [str(tmp_path / "2.jpg")]
        many = Catalog.read(["gone.jpg", tmp_path / "a", tmp_path / "2.jpg"], labelled=False)
        assert many.paths == ["gone.jpg", str(tmp_path / "a/1.jpg"), str(tmp_path / "2.jpg")]
        assert Catalog.read(many) is many
        assert "empty" in why_not([])

    def test_without_labels_the_folders_table_adds_its_columns(self, tmp_path):
        touch(tmp_path, "a/1.jpg", "a/2.jpg")
        table(tmp_path, "file_name,label,group\na/2.jpg,fox,g7\n")
        catalog = Catalog.read(tmp_path, labelled=False)
        assert catalog.labels == [None, "fox"] and catalog.column("group") == [None, "g7"]
        table(tmp_path, "something,else\n1,2\n")
        catalog = Catalog.read(tmp_path, labelled=False)
        assert len(catalog) == 2 and "no column file_name" in catalog.skipped[0].reason

    def test_the_folders_table_may_write_paths_in_another_way(self, tmp_path, monkeypatch):
        touch(tmp_path, "a/1.jpg", "a/Ka\u0308fer.jpg", "3.jpg")
        lines = "file_name,label\na/./1.jpg,fox\n./a//K\u00e4fer.jpg,lynx\na/../3.jpg,hare\n"
        table(tmp_path, lines)
        monkeypatch.chdir(tmp_path)
        for folder in (".", tmp_path, f"../{tmp_path.name}"):
            assert Catalog.read(folder, labelled=False).labels == ["hare", "fox", "lynx"]

    def test_several_sources(self, tmp_path):
        touch(tmp_path, "one/a/1.jpg", "two/b/1.jpg")
        extra = table(tmp_path, "path,label,lat\nq.jpg,c,1.5\n", "t.csv")
        catalog = Catalog.read([tmp_path / "one", str(tmp_path / "two"), extra])
        assert catalog.labels == ["a", "b", "c"] and catalog.column("lat") == [None, None, 1.5]


class TestRows:
    @pytest.fixture
    def catalog(self, tmp_path):
        return Catalog.read(
            table(
                tmp_path,
                "path,label,split,family,order,colour,one,code\n"
                "1.jpg,fox,train,Canidae,Carnivora,red,x,a\n"
                "2.jpg,fox,test,Canidae,Carnivora,grey,x,b\n"
                "3.jpg,wolf,train,Canidae,Carnivora,grey,x,c\n"
                "4.jpg,lynx,val,Felidae,Carnivora,grey,x,d\n"
                "5.jpg,hare,,Leporidae,Lagomorpha,grey,x,e\n",
            )
        )

    def test_select(self, catalog):
        assert catalog.select([4, 0]).labels == ["hare", "fox"]
        assert catalog.select(np.array([True, False, False, False, True])).labels == ["fox", "hare"]
        assert len(catalog.select([])) == 0
        assert catalog.of_split("train").labels == ["fox", "wolf"]
        assert catalog.of_split("val", "test").labels == ["fox", "lynx"]
        with pytest.raises(ValueError):
            catalog.select(np.array([True]))
        with pytest.raises(FieldmarkError, match="no column 'latin'"):
            catalog.column("latin")

    def test_with_column(self, catalog):
        changed = catalog.with_column("split", [None, "test", None, None, None]).with_column("n", range(5))
        assert changed.splits == [None, "test", None, None, None] and changed.column("n") == [0, 1, 2, 3, 4]
        assert catalog.splits[0] == "train" and "n" not in catalog.table.column_names
        assert not catalog.with_column("split", [None] * 5).has_split

    def test_ranks(self, catalog):
        assert catalog.ranks() == ["family", "order"]
        partly = catalog.with_column("family", ["Canidae", None, "Canidae", None, "Leporidae"])
        assert partly.ranks() == ["order", "family"] or partly.ranks() == ["family", "order"]
        broken = catalog.with_column("family", ["Canidae", "Felidae", "Canidae", None, None])
        assert broken.ranks() == ["order"]


@pytest.mark.real
@pytest.mark.parametrize(
    "name, count, classes, ranks",
    [
        ("grocery_store", 5421, 81, ["coarse", "top"]),
        ("cub100", 5902, 100, ["family", "order"]),
        ("steel_defects", 900, 6, []),
    ],
)
def test_real_sets(data_root, tmp_path, name, count, classes, ranks):
    if not (data_root / name).is_dir():
        pytest.skip(f"no {name}")
    catalog = Catalog.read(data_root / name)
    assert (len(catalog), len(catalog.classes), catalog.ranks()) == (count, classes, ranks)
    assert len(Catalog.read(data_root / name, labelled=False)) == count
    catalog.write(tmp_path / "split.csv")
    assert Catalog.read(tmp_path / "split.csv") == catalog
