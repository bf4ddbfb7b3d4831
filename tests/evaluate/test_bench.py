"""Methods compared: which trainings, resumed row by row, and what is made of the rows."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fieldmark.evaluate import bench
from fieldmark.evaluate.bench import Cell, cells, read, run, summary
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError


def row(method: str, top1: float, *, seed: int = 0, **more: Any) -> dict[str, str]:
    values = {
        "set": "s",
        "method": method,
        "seed": seed,
        "top1": top1,
        "seconds": 60,
        "photos_per_second": 10,
    }
    values |= {"answer_ms": 5.0, "mark_hit": "", "error": ""} | more
    return {name: str(value) for name, value in values.items()}


def test_the_yardstick_comes_first() -> None:
    found = [(cell.method, cell.seed) for cell in cells("s", ["isqrt_cov"], [0, 1], "90s", "", "", "")]
    assert found == [("plain", 0), ("isqrt_cov", 0), ("plain", 1), ("isqrt_cov", 1)]


def test_methods_that_need_pixels_have_a_yardstick_that_sees_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    known = {
        name: SimpleNamespace(name=name, needs=needs)
        for name, needs in [("plain", ()), ("zoom", ("pixels",))]
    }
    monkeypatch.setattr(bench.methods, "card", known.__getitem__)
    names = [cell.method for cell in cells("s", ["zoom", "plain"], [0], "90s", "", "", "")]
    assert names == ["plain", "plain (new views)", "zoom"]
    words = Cell("s", "plain (new views)", 3, "90s", "resnet", "64", "--flip x").words
    assert words[:2] == ["--method", "plain"] and words[-4:] == ["--views", "new", "--flip", "x"]
    lines = summary([row("plain", 0.9), row("plain (new views)", 0.5), row("zoom", 0.6)])
    assert {line["method"]: line.get("delta") for line in lines}["zoom"] == pytest.approx(10)


def test_lines_of_the_table() -> None:
    rows = [
        row("plain", 0.5, seed=0),
        row("plain", 0.7, seed=1),
        row("isqrt_cov", 0.6, seed=0, photos_per_second=5, answer_ms=10, mark_hit=0.25),
        row("isqrt_cov", 0.8, seed=1, photos_per_second=5, answer_ms=10, mark_hit=0.75),
        row("broken", "", error="it says why"),
    ]
    best, plain, broken = summary(rows)
    assert best["method"] == "isqrt_cov" and best["top1"] == pytest.approx(0.7)
    assert best["spread"] == pytest.approx(0.1414, abs=1e-3) and best["delta"] == pytest.approx(10)
    assert best["training"] == pytest.approx(2) and best["answer"] == pytest.approx(2)
    assert best["mark_hit"] == pytest.approx(0.5) and best["per_minute"] == pytest.approx(0.7)
    assert "delta" not in plain and plain["n"] == 2 and plain["mark_hit"] is None
    assert broken == {"set": "s", "method": "broken", "error": "it says why"}


def test_rows_that_are_there_are_not_measured_again(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def measured(source: str, catalog: Any, cell: Cell, work: Path, *_: Any) -> dict[str, Any]:
        seen.append(cell.method)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return {"top1": 0.123456789, "seconds": 1.0}

    monkeypatch.setattr(bench, "measured", measured)
    wanted = cells("s", ["isqrt_cov"], [0], "1s", "", "", "")
    table = tmp_path / "deep" / "table.csv"
    with pytest.raises(KeyboardInterrupt):
        list(run(str(photo_folder), wanted, table, tmp_path, lambda *_: None))
    assert [one["method"] for one in read(table)] == ["plain"]
    assert [one["method"] for one in run(str(photo_folder), wanted, table, tmp_path, lambda *_: None)] == [
        "isqrt_cov"
    ]
    assert seen == ["plain", "isqrt_cov", "isqrt_cov"]
    first = read(table)[0]
    assert (
        first["top1"] == "0.12346"
        and "--method plain" in first["command"]
        and str(tmp_path) not in str(first)
    )


def test_a_training_that_fails_is_a_row(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell("s", "plain", 0, "1s", "no_such_backbone", "", "--offline")
    (found,) = run(str(photo_folder), [cell], tmp_path / "t.csv", tmp_path, lambda *_: None)
    assert "no_such_backbone" in found["error"] and read(tmp_path / "t.csv")[0]["top1"] == ""
    monkeypatch.setattr(bench, "measured", lambda *_: {"top1": 0.5})  # it is tried again, and replaced
    (found,) = run(str(photo_folder), [cell], tmp_path / "t.csv", tmp_path, lambda *_: None)
    (row,) = read(tmp_path / "t.csv")
    assert row["top1"] == "0.5" and row["error"] == ""


@pytest.mark.slow
def test_real_trainings(photo_folder: Path, tmp_path: Path) -> None:
    wanted = cells("s", ["isqrt_cov"], [0], "25s", "test_efficientnet", "64", "--offline")
    rows = list(run(str(photo_folder), wanted, tmp_path / "t.csv", tmp_path, lambda *_: None))
    assert [one.get("error") for one in rows] == [None, None], json.dumps(rows)
    assert all(one["answer_ms"] > 0 and one["n_test"] > 0 for one in rows)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"mode": "instant", "n_test": 9, "top1": 0.9}, "too little time"),
        ({"mode": "finetune", "n_test": 0, "top1": None}, "no test"),
    ],
)
def test_no_model_takes_anothers_place(
    told: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there was no time, `train` gives the instant model: that is not the method's."""
    from types import SimpleNamespace

    done = SimpleNamespace(returncode=0, stdout=json.dumps(told) + "\n", stderr="")
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: done)
    found = bench.measured("photos", None, Cell("s", "plain", 0, "9s", "", ""), tmp_path)  # type: ignore[arg-type]
    assert list(found) == ["error"] and why in found["error"]


def test_a_table_of_other_things_is_left_alone(tmp_path: Path) -> None:
    table = tmp_path / "photos.csv"
    table.write_text("path,label\na.jpg,ant\n")
    with pytest.raises(FieldmarkError, match="choose another --out"):
        read(table)


def test_where_every_training_fails_so_does_the_command(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from fieldmark.cli import app

    monkeypatch.setattr(bench, "measured", lambda *_: {"error": "no luck"})
    words = ["bench", "methods", str(photo_folder), "--method", "plain", "--out", str(tmp_path / "t.csv")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1 and "plain: no luck" in done.stderr
    assert "no method could be compared" in done.stderr.splitlines()[-1]


def test_changed_photos_are_measured_again(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of an older table does not say of which photos it is, and stays."""
    monkeypatch.setattr(bench, "measured", lambda *_: {"top1": 0.5})
    cell, table = Cell("s", "plain", 0, "1s", "", ""), tmp_path / "t.csv"
    photos = shutil.copytree(photo_folder, tmp_path / "photos")

    def measured() -> int:
        return len(list(run(str(photos), [cell], table, tmp_path, lambda *_: None)))

    assert (measured(), measured()) == (1, 0)
    next(photos.rglob("*.jpg")).unlink()
    assert (measured(), measured()) == (1, 0)
    table.write_text(",".join([*bench.KEY, "top1"]) + "\ns,plain,0,1s,,,,0.4\n")
    assert measured() == 0
    elsewhere = shutil.copytree(photos, tmp_path / "elsewhere")
    assert bench.fingerprint(Catalog.read(elsewhere)) == bench.fingerprint(Catalog.read(photos))


def test_the_command_shows_rows_of_its_own_settings_only(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of another budget, backbone, size, set of flags, or of other photos, of one table."""
    from typer.testing import CliRunner

    from fieldmark.cli import app

    table = tmp_path / "t.csv"
    own = {"set": "s", "method": "plain", "seed": "0", "budget": "9s", "backbone": "b", "size": "64"}
    own |= {"flags": "--flip x", "top1": "0.5", "seconds": "9"}
    others = [
        {"budget": "1m"},
        {"backbone": "c"},
        {"size": ""},
        {"flags": ""},
        {"photos": "old"},
        {"set": "t"},
    ]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, bench.COLUMNS, restval="")
        writer.writeheader()
        writer.writerow(own)
        writer.writerows(own | {"top1": "0.9", "seed": f"{n}"} | other for n, other in enumerate(others, 1))
    monkeypatch.setattr(bench, "measured", lambda *_: pytest.fail("it was measured"))
    words = ["bench", "methods", str(photo_folder), "--method", "plain", "--budget", "9s", "--backbone", "b"]
    words += ["--size", "64", "--flags", "--flip x", "--name", "s", "--out", str(table), "--json"]
    done = CliRunner().invoke(app, words)
    (line,) = json.loads(done.stdout.splitlines()[-1])["methods"]
    assert (line["n"], line["top1"]) == (1, 0.5)
