"""CSV and Parquet become the same table: columns, types, dialects, and rows that are refused."""

from __future__ import annotations

import csv
import tracemalloc
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import rows, table, touch, why_not

from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.catalog_tables import _MISSING


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

    def test_a_group_that_is_missing_is_none(self, tmp_path):
        """R writes NA for a value that is not known: not one group of all those photos."""
        data = "path,label,group\n1.jpg,NA,NA\n2.jpg,a, \n3.jpg,a,g 1\n4.jpg,a,NaN\n5.jpg,a,\n"
        catalog = Catalog.read(table(tmp_path, data))
        assert catalog.column("group") == [None, None, "g 1", None, None] and catalog.labels[0] == "NA"
        groups = pa.table({"path": ["1.jpg", "2.jpg"], "label": ["a", "b"], "group": ["NA", "x"]})
        pa.parquet.write_table(groups, tmp_path / "t.parquet")
        assert Catalog.read(tmp_path / "t.parquet").column("group") == [None, "x"]

    def test_columns_of_several_tables_that_do_not_agree(self, tmp_path):
        one = table(tmp_path, "path,label,lat,note,code,empty\n1.jpg,a,,x,7,\n2.jpg,b,NA,y,8,NA\n", "a.csv")
        two = table(tmp_path, "path,label,lat,note,code,empty\n3.jpg,a,1.5,,B9,\n", "b.csv")
        boxes = pa.table(
            {"path": ["4.jpg"], "label": ["a"], "code": [[1.5, 2]], "empty": pa.array([None], pa.int32())}
        )
        pa.parquet.write_table(boxes, tmp_path / "c.parquet")
        catalog = Catalog.read([one, two, tmp_path / "c.parquet"])
        assert catalog.column("lat") == [None, None, 1.5, None]
        assert catalog.column("note") == ["x", "y", None, None]
        assert catalog.column("code") == ["7", "8", "B9", "[1.5, 2.0]"]
        assert catalog.column("empty") == [None] * 4
        catalog.write(tmp_path / "all.csv")
        assert Catalog.read(tmp_path / "all.csv").column("lat") == [None, None, 1.5, None]
        unlabelled = Catalog.read([tmp_path / "x.jpg", "y.jpg"], labelled=False)
        assert unlabelled.labels == [None, None] and unlabelled.table["label"].type == pa.string()

    def test_an_unknown_split_matters_only_with_labels(self, tmp_path):
        path = table(tmp_path, "path,label,split\n1.jpg,a,train\n2.jpg,a,holdout\n")
        catalog = Catalog.read(path, labelled=False)
        assert catalog.splits == ["train", None] and not catalog.skipped
        assert len(Catalog.read(path)) == 1

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

        def known(group):
            return group.strip() and group.strip() not in _MISSING

        def some(values):
            return data.draw(st.lists(values, min_size=count, max_size=count))

        catalog = Catalog(
            pa.table(
                {
                    "path": pa.array([f"/p/{number}.jpg" for number in range(count)]),
                    "label": pa.array(some(label), pa.string()),
                    "split": pa.array(some(st.sampled_from(["train", "val", "test", None])), pa.string()),
                    "group": pa.array(some(st.none() | text.filter(known)), pa.string()),
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
