from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fieldmark.runtime.errors import FieldmarkError, UsageError
from fieldmark.runtime.tables import ENDINGS, Kind, open_table
from fieldmark.runtime.tables import parquet as parts

COLUMNS: dict[str, Kind] = {"path": "text", "label": "text", "score": "number", "error": "text"}
WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
NASTY = [
    'a,b "c".jpg',
    "new\nline.jpg",
    "carriage\r.jpg",
    "甲虫/一.jpg",
    "🪲.png",
    " space ",
    "a\\b",
    "'",
    "=1+1",
]


def rows(names: list[str]) -> list[dict[str, Any]]:
    return [
        {"path": name, "label": f"{name}!", "score": np.float32(0.5), "error": None}
        if index % 3
        else {"path": name, "label": None, "score": float("nan"), "error": "cannot be\nread"}
        for index, name in enumerate(names)
    ]


def read(path: Path) -> list[dict[str, Any]]:
    """By an independent reader; an empty CSV field counts as missing."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="", errors="surrogateescape") as file:
            return [
                {**row, "label": row["label"] or None, "error": row["error"] or None}
                | {"score": float(row["score"]) if row["score"] else None}
                for row in csv.DictReader(file)
            ]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return pq.read_table(path).to_pylist()


def clean(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"score": 0.5 if row["label"] else None} for row in rows]


@pytest.mark.parametrize("ending", ENDINGS)
def test_round_trip(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"deep/table{ending}"
    with open_table(path, COLUMNS) as table:
        for row in rows(NASTY):
            table.write(row)
    assert read(path) == clean(rows(NASTY))
    assert table.saved == len(NASTY)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_empty_table_is_a_table(tmp_path: Path, ending: str) -> None:
    with open_table(tmp_path / f"t{ending}", COLUMNS):
        pass
    assert read(tmp_path / f"t{ending}") == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_there_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"t{ending}"
    with open_table(path, COLUMNS) as table:
        table.write(rows(["a"])[0])
    before = path.read_bytes()
    with pytest.raises(UsageError, match="--resume"):
        open_table(path, COLUMNS)
    assert path.read_bytes() == before
    with open_table(path, COLUMNS, overwrite=True) as table:
        assert "a" not in table
        table.write(rows(["b"])[0])
    assert [row["path"] for row in read(path)] == ["b"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_overwriting_that_was_stopped_goes_on(tmp_path: Path, ending: str) -> None:
    """The old table has no say any more, be it of another model."""
    path = tmp_path / f"t{ending}"
    with open_table(path, COLUMNS, same={"model": "old"}) as table:
        for name in ("a", "b", "z"):
            table.write({"path": name, "label": "old"})
    with (
        pytest.raises(RuntimeError),
        open_table(path, COLUMNS, same={"model": "new"}, overwrite=True) as table,
    ):
        table.write({"path": "a", "label": "new"})
        raise RuntimeError
    for _ in range(2):
        with open_table(path, COLUMNS, same={"model": "new"}, resume=True) as table:
            assert "a" in table and "z" not in table
            if "b" not in table:
                table.write({"path": "b", "label": "new"})
    assert [(row["path"], row["label"]) for row in read(path)] == [("a", "new"), ("b", "new")]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_wrong_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.parquet"):
        open_table(tmp_path / "t.xlsx", COLUMNS)
    with pytest.raises(UsageError, match=r"\.parquet"):
        open_table(tmp_path / "t.csv", {"path": "text", "embedding": "vector"})
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match="folder"):
        open_table(tmp_path / "folder.csv", COLUMNS, overwrite=True)


@pytest.mark.parametrize("ending", ENDINGS)
def test_resume_after_an_error(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 2)
    path = tmp_path / f"t{ending}"
    names = [f"{name}{copy}" for copy in range(3) for name in NASTY]
    with pytest.raises(RuntimeError), open_table(path, COLUMNS) as table:
        for row in rows(names)[:7]:
            table.write(row)
        raise RuntimeError
    if ending == ".parquet":
        assert not path.exists()
        with pytest.raises(UsageError, match="unfinished"):
            open_table(path, COLUMNS)
    with open_table(path, COLUMNS, resume=True) as table:
        assert table.saved == 7
        assert [name in table for name in names] == [True] * 7 + [False] * (len(names) - 7)
        for row in rows(names)[7:]:
            table.write(row)
    assert read(path) == clean(rows(names))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_finished_table_takes_new_rows(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"t{ending}"
    for names in (["a", "b"], ["c"]):
        with open_table(path, COLUMNS, resume=True) as table:
            for row in rows(names):
                table.write(row)
    assert [row["path"] for row in read(path)] == ["a", "b", "c"]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=1, max_size=6, unique=True
    ),
    data=st.data(),
)
def test_torn_anywhere(tmp_path: Path, ending: str, names: list[str], data: st.DataObject) -> None:
    """Cut the file at any byte: what remains is kept, the rest is written again, and nothing twice."""
    path = tmp_path / f"t{ending}"
    with open_table(path, COLUMNS, overwrite=True) as table:
        for row in rows(names):
            table.write(row)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with open_table(path, COLUMNS, resume=True) as table:
        for row in rows(names):
            if row["path"] not in table:
                table.write(row)
    assert path.read_bytes() == whole
    assert [row["path"] for row in read(path)] == names


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    odd = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    for ending in ENDINGS:
        for _ in range(2):
            with open_table(tmp_path / f"t{ending}", COLUMNS, resume=True) as table:
                for name in (odd, "\ud800"):
                    if name not in table:
                        table.write({"path": name})
        assert table.saved == 2
        assert len(read(tmp_path / f"t{ending}")) == 2
    assert b"caf\xe9.jpg" in (tmp_path / "t.csv").read_bytes()


@pytest.mark.parametrize("ending", ENDINGS)
def test_other_columns_are_not_resumed(tmp_path: Path, ending: str) -> None:
    with open_table(tmp_path / f"t{ending}", {"path": "text", "other": "text"}) as table:
        table.write({"path": "a", "other": "b"})
    with pytest.raises(UsageError, match="other columns") as caught:
        open_table(tmp_path / f"t{ending}", COLUMNS, resume=True)
    assert "with other" in str(caught.value) and "\n" not in str(caught.value)
    with open_table(tmp_path / f"u{ending}", {"file": "text"}, key="file") as table:
        table.write({"file": "a"})
    with pytest.raises(UsageError, match=r"without path.*with file"):
        open_table(tmp_path / f"u{ending}", COLUMNS, resume=True)


@pytest.mark.parametrize("text", ["what is this\n", "[1]\n", '{"label": "x"}\n'])
def test_a_foreign_file_is_not_resumed(tmp_path: Path, text: str) -> None:
    for ending in (".csv", ".jsonl"):
        (tmp_path / f"t{ending}").write_text(text)
        with pytest.raises(FieldmarkError, match="t"):
            open_table(tmp_path / f"t{ending}", COLUMNS, resume=True)
        assert (tmp_path / f"t{ending}").read_text() == text
    (tmp_path / "t.parquet").write_text(text)
    with pytest.raises(FieldmarkError, match="damaged"):
        open_table(tmp_path / "t.parquet", COLUMNS, resume=True)


def test_vectors(tmp_path: Path) -> None:
    columns: dict[str, Kind] = {"path": "text", "embedding": "vector"}
    vectors = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    with open_table(tmp_path / "e.parquet", columns) as table:
        for index, vector in enumerate(vectors):
            table.write({"path": str(index), "embedding": vector})
        table.write({"path": "bad", "embedding": None})
    column = pq.read_table(tmp_path / "e.parquet")["embedding"].to_pylist()
    assert np.array_equal(np.array(column[:5], np.float32), vectors)
    assert column[5] is None


def test_parts_left_behind_are_not_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    with monkeypatch.context() as patch:  # killed between joining and tidying
        patch.setattr(parts.shutil, "rmtree", lambda *_, **__: None)
        with open_table(path, COLUMNS) as table:
            for row in rows(["a", "b"]):
                table.write(row)
    assert parts.parts_folder(path).exists()
    with open_table(path, COLUMNS, resume=True) as table:
        assert "a" in table
        table.write(rows(["c"])[0])
    assert [row["path"] for row in read(path)] == ["a", "b", "c"]
    assert not parts.parts_folder(path).exists()


WRITER = """
import sys
from fieldmark.runtime.tables import open_table, parquet
parquet.PART_SECONDS = 0.02
columns = {"path": "text", "label": "text", "score": "number", "error": "text"}
with open_table(sys.argv[1], columns, resume=True) as table:
    for index in range(int(sys.argv[2])):
        if str(index) not in table:
            table.write({"path": str(index), "label": 'a\\n"b"' * 50, "score": 0.5})
            if index % 10 == 0:
                print(table.saved, flush=True)
    print("end", flush=True)
"""


@pytest.mark.parametrize("ending", ENDINGS)
def test_killed_at_any_moment(tmp_path: Path, ending: str) -> None:
    """kill -9, four times: every row that was reported is there, and in the end each exactly once."""
    path, reported, dice = tmp_path / f"t{ending}", 0, random.Random(ending)
    command = [sys.executable, "-c", WRITER, str(path)]
    for _ in range(4):
        process = subprocess.Popen([*command, "1000000"], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        first = process.stdout.readline()
        time.sleep(dice.uniform(0, 0.1))
        process.kill()
        lines = [first, *process.stdout.read().split("\n")[:-1]]
        process.wait()
        assert int(first) >= reported, "a reported row was lost"
        reported = int(lines[-1])
    total = reported + 2 * parts.PART_ROWS  # a last part may have been saved and not yet reported
    subprocess.run([*command, str(total)], check=True, stdout=subprocess.DEVNULL, timeout=60)
    assert sorted(int(row["path"]) for row in read(path)) == list(range(total))
