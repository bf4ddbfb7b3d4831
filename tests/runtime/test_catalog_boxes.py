"""Boxes of a photo that stand in rows of their own."""

from __future__ import annotations

import json

import pytest
from sources import table

from fieldmark.runtime.catalog import Catalog


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

    def test_the_two_tables_may_write_paths_in_another_way(self, tmp_path, monkeypatch):
        table(tmp_path, "file_name,label\nx/a.jpg,fox\n./Ka\u0308fer.jpg,lynx\n")
        rows = "x/../x/a.jpg,1,2,3,4\nK\u00e4fer.jpg,5,6,7,8\n"
        table(tmp_path, "file_name,box_x,box_y,box_w,box_h\n" + rows, "boxes.csv")
        monkeypatch.chdir(tmp_path)
        for source in (tmp_path, "."):
            assert None not in Catalog.read(source).column("boxes")

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
