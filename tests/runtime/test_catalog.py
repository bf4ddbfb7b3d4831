"""Every source becomes the same table; what cannot be used is said in one line or listed."""

from __future__ import annotations

import csv
import json
import os
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def table(root: Path, text: str | bytes, name: str = "metadata.csv") -> Path:
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root / name


def rows(catalog: Catalog, root: Path) -> list[tuple]:
    paths = [Path(path).relative_to(root).as_posix() for path in catalog.paths]
    return list(zip(paths, catalog.labels, catalog.splits, strict=True))


def why_not(source, **options) -> str:
    with pytest.raises(FieldmarkError) as caught:
        Catalog.read(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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

    def test_several_sources(self, tmp_path):
        touch(tmp_path, "one/a/1.jpg", "two/b/1.jpg")
        extra = table(tmp_path, "path,label,lat\nq.jpg,c,1.5\n", "t.csv")
        catalog = Catalog.read([tmp_path / "one", str(tmp_path / "two"), extra])
        assert catalog.labels == ["a", "b", "c"] and catalog.column("lat") == [None, None, 1.5]


class TestSeveralBoxes:
    """``boxes.csv``, a row a box, becomes the column ``boxes``."""

    PHOTOS = "file_name,label\na.jpg,fox\nb.jpg,lynx\nc.jpg,fox\n"

    def test_they_are_joined_by_photo(self, tmp_path):
        table(tmp_path, self.PHOTOS)
        rows = "b.jpg,1,2,3,4,\na.jpg,5,6,7.5,8,\nb.jpg,9,9,9,9,猫\nd.jpg,1,1,1,1,\n"
        table(tmp_path, "file_name,box_x,box_y,box_w,box_h,label\n" + rows, "boxes.csv")
        for source in (tmp_path, tmp_path / "metadata.csv", [tmp_path / "metadata.csv"]):
            catalog = Catalog.read(source)
            cells = catalog.column("boxes")
            assert cells[2] is None and [json.loads(cell) for cell in cells[:2]] == [
                [[5, 6, 7.5, 8]],
                [[1, 2, 3, 4], [9, 9, 9, 9, None, "猫"]],
            ]
        catalog.write(tmp_path / "copy.csv")
        assert Catalog.read(tmp_path / "copy.csv").column("boxes") == cells, "the table's own goes first"
        assert catalog.ranks() == []

    def test_what_cannot_be_a_box_is_listed(self, tmp_path):
        table(tmp_path, self.PHOTOS)
        table(tmp_path, "path,box_x,box_y,box_w,box_h\na.jpg,1,,3,4\nb.jpg,1,2,3,4\n", "boxes.csv")
        catalog = Catalog.read(tmp_path)
        assert catalog.column("boxes") == [None, "[[1.0, 2.0, 3.0, 4.0]]", None]
        assert [one.reason for one in catalog.skipped] == ["a box without a number for each of x, y, w, h"]

    @pytest.mark.parametrize("text", ["path,weight\na.jpg,3\n", "", "a,b\n1,2\n"])
    def test_another_table_of_that_name(self, tmp_path, text):
        table(tmp_path, self.PHOTOS)
        table(tmp_path, text, "boxes.csv")
        catalog = Catalog.read(tmp_path)
        assert len(catalog) == 3 and "boxes" not in catalog.table.column_names
        (one,) = catalog.skipped
        assert one.path.endswith("boxes.csv") and "\n" not in one.reason

    def test_a_table_that_is_called_so_itself(self, tmp_path):
        path = table(tmp_path, "path,label,box_x,box_y,box_w,box_h\na.jpg,fox,1,2,3,4\n", "boxes.csv")
        assert "boxes" not in Catalog.read(path).table.column_names


class TestTables:
    def test_columns_and_types(self, tmp_path):
        touch(tmp_path, "x/1.jpg")
        table(
            tmp_path,
            "file_name,label,split,group,lat,box_x,count,code,family,note,date\n"
            "x/1.jpg,001,train,7,59.5,1,3,007,Felidae,,2024-05-01\n"
            "x/2.jpg,NA,valid,8,-1e-3,,4,010,Canidae,,2024-05-02\n"
            "/abs/3.jpg,null,,,NA,2.5,5,100,,,\n",
        )
        catalog = Catalog.read(tmp_path)
        assert catalog.labels == ["001", "NA", "null"]
        assert catalog.splits == ["train", "val", None] and catalog.has_split
        assert catalog.column("group") == ["7", "8", None]
        assert catalog.column("lat") == [59.5, -0.001, None]
        assert catalog.column("box_x") == [1.0, None, 2.5]
        assert catalog.column("count") == [3, 4, 5]
        assert catalog.column("code") == ["007", "010", "100"]
        assert catalog.column("family") == ["Felidae", "Canidae", None]
        assert catalog.column("note") == [None] * 3
        assert catalog.paths == [str(tmp_path / "x/1.jpg"), str(tmp_path / "x/2.jpg"), "/abs/3.jpg"]
        assert catalog.table.column_names[:3] == ["path", "label", "split"]

    @pytest.mark.parametrize(
        "data",
        [
            b"\xef\xbb\xbffile_name,label\r\na.jpg,fox\r\nb.jpg,lynx\r\n",
            b"file_name;label\na.jpg;fox\nb.jpg;lynx",
            b"path\tlabel\na.jpg\tfox\n\n\nb.jpg\tlynx\n",
            "label,path\nfox,a.jpg\nlynx,b.jpg\n".encode("utf-16"),
            b' Label , File_Name\n"fox","a.jpg"\n"lynx",b.jpg',
            b'\xef\xbb\xbf"file_name";"label"\r\n"a.jpg";"fox"\r\n"b.jpg";"lynx"\r\n',
            b"file_name,label\n./a.jpg,fox\n././b.jpg,lynx\n",
        ],
    )
    def test_dialects(self, tmp_path, data):
        catalog = Catalog.read(table(tmp_path, data))
        assert rows(catalog, tmp_path) == [("a.jpg", "fox", None), ("b.jpg", "lynx", None)]

    def test_decimal_comma_and_windows_paths(self, tmp_path):
        catalog = Catalog.read(table(tmp_path, "path;label;lat\na\\1.jpg;x;59,25\n"))
        assert catalog.column("lat") == [59.25]
        assert rows(catalog, tmp_path)[0][0] == "a/1.jpg"

    def test_refused_rows_are_listed(self, tmp_path):
        catalog = Catalog.read(
            table(
                tmp_path,
                "path,label,split\n1.jpg,a,train\n2.jpg,,\n3.jpg, ,\n4.jpg,a,holdout\n"
                ",a,\n5.jpg,a\n6.jpg,b,\n",
            )
        )
        assert [Path(path).name for path in catalog.paths] == ["1.jpg", "6.jpg"]
        reasons = sorted(item.reason for item in catalog.skipped)
        assert reasons == [
            "no file name in this row",
            "no label",
            "no label",
            "row has 2 cells, expected 3",
            "unknown split 'holdout' (known: train, val, test)",
        ]

    def test_rows_of_which_a_coarser_rank_is_known_stay(self, tmp_path):
        """Ranks are read from labelled rows; `sex` is none."""
        text = (
            "path,label,family,sex\n1.jpg,a,F,m\n2.jpg,b,G,m\n3.jpg,c,G,m\n9.jpg,c,,f\n"
            "4.jpg,,F,m\n5.jpg, ,H,\n6.jpg,,,m\n"
        )
        catalog = Catalog.read(table(tmp_path, text))
        assert catalog.labels == ["a", "b", "c", "c", None, None] and catalog.classes == ["a", "b", "c"]
        assert catalog.ranks() == ["family"] and catalog.coarse.tolist() == [False] * 4 + [True] * 2
        assert [(Path(one.path).name, one.reason) for one in catalog.skipped] == [("6.jpg", "no label")]
        catalog.write(tmp_path / "again.csv")
        assert Catalog.read(tmp_path / "again.csv") == catalog
        assert not catalog.select([0, 1, 2]).coarse.any()

    def test_the_tree_of_several_tables(self, tmp_path):
        """One has the classes, another only families."""
        one = table(tmp_path, "path,label,family\n1.jpg,a,F\n2.jpg,b,G\n3.jpg,c,G\n", "a.csv")
        two = table(tmp_path, "path,label,family\n4.jpg,,G\n5.jpg,,\n", "b.csv")
        catalog = Catalog.read([one, two])
        assert catalog.labels == ["a", "b", "c", None] and catalog.coarse.tolist() == [False] * 3 + [True]
        assert [Path(one.path).name for one in catalog.skipped] == ["5.jpg"]
        assert "no usable row" in why_not(two) and "4.jpg: no label" in why_not(two)

    def test_what_is_wrong_is_said(self, tmp_path):
        words = why_not(table(tmp_path, "photo,class\n1.jpg,a\n"))
        assert words.endswith("has no column file_name or path; its columns: photo, class")
        words = why_not(table(tmp_path, "path,class\n1.jpg,a\n"))
        assert words.endswith("has no column label; its columns: path, class")
        assert len(Catalog.read(tmp_path / "metadata.csv", labelled=False)) == 1
        assert "is empty" in why_not(table(tmp_path, ""))
        assert "no usable row" in why_not(table(tmp_path, "path,label\n"))
        assert "1.jpg: no label" in why_not(table(tmp_path, "path,label\n1.jpg,\n"))
        assert "CSV UTF-8" in why_not(table(tmp_path, "path,label\n1.jpg,é\n".encode("latin-1")))
        assert "binary" in why_not(table(tmp_path, b"path,label\0\0\n\0"))
        assert "two columns called 'family'" in why_not(
            table(tmp_path, "path,label,family,family\n1,a,b,c\n")
        )
        assert "Parquet" in why_not(table(tmp_path, "path,label", "t.parquet"))

    def test_parquet(self, tmp_path):
        data = {
            "file_name": ["a.jpg", "b.jpg"],
            "label": pa.array(["x", "y"]).dictionary_encode(),
            "group": [1, 2],
            "box": [[1.0, 2.0], None],
            "lat": [1.5, 2.5],
        }
        pa.parquet.write_table(pa.table(data), tmp_path / "t.parquet")
        catalog = Catalog.read(tmp_path / "t.parquet")
        assert rows(catalog, tmp_path) == [("a.jpg", "x", None), ("b.jpg", "y", None)]
        assert catalog.column("group") == ["1", "2"] and catalog.column("box") == [[1.0, 2.0], None]
        catalog.write(tmp_path / "again.parquet")
        assert Catalog.read(tmp_path / "again.parquet") == catalog
        catalog.write(tmp_path / "flat.csv")
        assert Catalog.read(tmp_path / "flat.csv").column("box") == ["[1.0, 2.0]", None]

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_what_is_written_reads_back(self, tmp_path_factory, data):
        text = st.text(
            st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
        )
        label = text.filter(str.strip).map(lambda name: unicodedata.normalize("NFC", name))
        count = data.draw(st.integers(1, 5))

        def some(values):
            return data.draw(st.lists(values, min_size=count, max_size=count))

        catalog = Catalog(
            pa.table(
                {
                    "path": pa.array([f"/p/{number}.jpg" for number in range(count)]),
                    "label": pa.array(some(label), pa.string()),
                    "split": pa.array(some(st.sampled_from(["train", "val", "test", None])), pa.string()),
                    "group": pa.array(some(st.none() | text), pa.string()),
                    "lat": pa.array(some(st.none() | st.floats(-90, 90)), pa.float64()),
                }
            )
        )
        path = tmp_path_factory.mktemp("round") / "split.csv"
        catalog.write(path)
        again = Catalog.read(path)
        assert again.labels == catalog.labels and again.splits == catalog.splits
        assert again.column("group") == catalog.column("group")
        if catalog.table["lat"].null_count < count:
            assert again.column("lat") == catalog.column("lat")
        with path.open(encoding="utf-8", newline="") as file:  # and another reader agrees
            assert [row["label"] for row in csv.DictReader(file)] == catalog.labels

    def test_relative_paths_are_written_absolute(self, tmp_path, monkeypatch):
        touch(tmp_path, "photos/a/1.jpg", "photos/b/1.jpg", "runs/x/.keep")
        monkeypatch.chdir(tmp_path)
        catalog = Catalog.read("photos")
        assert catalog.paths == [str(Path("photos/a/1.jpg")), str(Path("photos/b/1.jpg"))]
        catalog.write("runs/x/split.csv")
        again = Catalog.read("runs/x/split.csv")
        assert again == catalog and all(Path(path).is_file() for path in again.paths)
        assert Catalog.read(".") != catalog


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


def test_a_large_table_stays_columns(tmp_path):
    count = 200_000
    lines = "".join(f"c{i % 100}/{i}.jpg,c{i % 100},{i % 7}.5\n" for i in range(count))
    table(tmp_path, "file_name,label,lat\n" + lines)
    del lines
    tracemalloc.start()
    catalog = Catalog.read(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(catalog) == count and len(catalog.classes) == 100
    assert peak < 5_000_000  # bytes of Python objects
