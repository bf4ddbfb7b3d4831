"""Methods compared: which trainings, resumed row by row, and what is made of the rows."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fieldmark.evaluate import bench
from fieldmark.evaluate.bench import Cell, cells, read, run
from fieldmark.evaluate.bench_summary import summary
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


@pytest.mark.parametrize(
    ("views", "order"),
    [
        ({"zoom": "new"}, ["plain", "zoom", "plain (new views)", "still", "wide"]),
        ({"zoom": "new", "plain": "new"}, ["plain", "zoom", "still", "wide"]),
        ({}, ["plain", "zoom", "still", "wide"]),
    ],
)
def test_methods_that_learned_from_new_views_have_a_yardstick_that_did(
    views: dict[str, str],
    order: list[str],
    photo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever they need: what was done decides. Once a seed, and also where the method's row was there already."""

    def measured(source: str, catalog: Any, cell: Cell, *_: Any) -> dict[str, Any]:
        if cell.method == "wide":
            return {"error": "no luck"}
        return {"top1": 0.5, "seconds": 1.0, "views": views.get(cell.method, "kept")}

    monkeypatch.setattr(bench.methods, "card", lambda name: SimpleNamespace(name=name, needs=("pixels",)))
    monkeypatch.setattr(bench, "measured", measured)
    wanted = cells("s", ["zoom", "plain", "still", "wide"], [0, 1], "90s", "", "", "")

    def made(table: Path) -> list[str]:
        return [one["method"] for one in run(str(photo_folder), wanted, table, tmp_path, lambda *_: None)]

    assert made(tmp_path / "t.csv") == 2 * order
    with (tmp_path / "u.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, bench.COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(one for one in read(tmp_path / "t.csv") if one["method"] != bench.PIXELS)
    assert made(tmp_path / "u.csv") == 2 * [name for name in order if name in ("plain (new views)", "wide")]


def test_the_yardstick_learned_as_the_method_did(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"plain": (), "zoom": ("pixels",), "wide": ()}
    monkeypatch.setattr(bench.methods, "card", lambda name: SimpleNamespace(needs=known[name]))
    words = Cell("s", "plain (new views)", 3, "90s", "resnet", "64", "--flip x").words
    assert words[:2] == ["--method", "plain"] and words[-4:] == ["--views", "new", "--flip", "x"]

    def points(*rows: dict[str, str]) -> dict[str, Any]:
        return {line["method"]: line.get("delta") for line in summary(rows)}

    plain, other = row("plain", 0.9), row("plain (new views)", 0.5)
    old = points(plain, other, row("zoom", 0.6), row("wide", 0.8))
    assert old["zoom"] == pytest.approx(10) and old["wide"] == pytest.approx(-10), "needs tell of older rows"
    assert old["plain (new views)"] == pytest.approx(-40) and old["plain"] is None
    said = points(plain, other, row("zoom", 0.6, views="kept"), row("wide", 0.8, views="new"))
    assert said["zoom"] == pytest.approx(-30) and said["wide"] == pytest.approx(30)
    assert points(row("plain", 0.9, views="new"), row("wide", 0.8, views="new"))["wide"] == pytest.approx(-10)
    assert points(row("plain", 0.9, views="kept"), row("wide", 0.8, views="new"))["wide"] is None


@pytest.mark.parametrize("what", ["set", "budget", "backbone", "size", "flags"])
def test_rows_of_other_settings_are_not_averaged(what: str) -> None:
    rows = [row("plain", 0.5), row("isqrt_cov", 0.6), row("isqrt_cov", 0.9, seed=1, **{what: "other"})]
    lines = [line for line in summary(rows) if line["method"] == "isqrt_cov"]
    assert sorted((line["top1"], line.get("delta")) for line in lines) == [
        (0.6, pytest.approx(10)),
        (0.9, None),
    ]
    assert {line[what] for line in lines} == {row("", 0).get(what, ""), "other"}


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
    assert broken == dict.fromkeys(bench.ALIKE, "") | {"set": "s", "method": "broken", "error": "it says why"}


def test_our_own_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/methods.py: rows of the usual backbone alone; the best are so on the sets that they can serve."""
    home = Path(__file__).resolve().parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(home))
    own = runpy.run_path(str(home / "methods.py"))
    table, written = tmp_path / "rows.csv", tmp_path / "measured.csv"
    for name, path in {"ROWS": table, "TABLE": written}.items():
        monkeypatch.setitem(own["best"].__globals__, name, path)

    def screened(set: str, method: str, value: Any, **more: Any) -> dict[str, str]:
        return row(method, value, held_out_top1=value, set=set, budget="60s", **more)

    one, two = own["SCREEN"]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, bench.COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(screened(one, name, 0.8) for name in ("plain", "isqrt_cov", "pmg", "hxe", "metric"))
        writer.writerows(
            screened(two, name, v) for name, v in {"isqrt_cov": 0.6, "pmg": "", "metric": 0.9}.items()
        )
        writer.writerow(screened(two, "se", 1.0, backbone="other"))
    assert own["best"]() == ["metric", "hxe", "isqrt_cov", "pmg"]
    own["tables"]()
    lines = {(line["set"], line["method"]): line["top1"] for line in csv.DictReader(written.open())}
    assert lines[two, "pmg"] == "" and lines[one, "pmg"] == "0.8" and (two, "se") not in lines


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
    wanted = cells("s", ["isqrt_cov"], [0], "40s", "tf_efficientnet_lite0", "64", "--offline")
    rows = list(run(str(photo_folder), wanted, tmp_path / "t.csv", tmp_path, lambda *_: None))
    assert [one.get("error") for one in rows] == [None, None], json.dumps(rows)
    assert all(one["answer_ms"] > 0 and one["n_test"] > 0 and one["views"] in ("kept", "new") for one in rows)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"mode": "instant", "n_test": 9, "top1": 0.9}, "too little time"),
        ({"mode": "finetune", "n_test": 9, "top1": 0.9, "epochs": 0.0}, "9s is too little time for a step"),
        ({"mode": "finetune", "n_test": 0, "top1": None, "epochs": 1.0}, "no test"),
    ],
)
def test_no_model_takes_anothers_place(
    told: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there was no time, `train` gives the instant model, or an untrained one: that is not the method's."""
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
