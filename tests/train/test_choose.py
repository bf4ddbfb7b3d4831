"""A method chosen by what was measured on sets of photos like these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fieldmark import methods
from fieldmark.methods.measured import Measured
from fieldmark.runtime.catalog import Catalog
from fieldmark.train import choose
from fieldmark.train.choose import fitting, resolved

NAMES = ["plain", "wsdan", "pmg", "isqrt_cov"]


def row(
    method: str, points: float, *, photos: int = 400, classes: int = 10, budget: str = "5m", n: int = 3
) -> Measured:
    top1 = 0.8 + points / 100
    return Measured(method, "s", budget, n, top1, 0.01, None, 1.0, 1.0, None, 0.2, None, photos, classes)


def best(rows: list[Measured], *about: Any) -> tuple[str, float | None]:
    """Beside plain, measured in the same time."""
    return choose.best([*(row("plain", 0.0, budget=one.budget) for one in rows), *rows], *about)


def test_points_are_those_above_plain_in_the_same_time() -> None:
    plain, pmg = row("plain", 3.0), row("pmg", 3.9)
    assert choose.best([plain, pmg], NAMES, 400, 10, 300) == ("isqrt_cov", 0.0), "0.9 points are too few"
    assert choose.best([plain._replace(budget="1h"), pmg], NAMES, 400, 10, 300)[1] is None, (
        "plain's are of another"
    )


def test_the_best_where_the_set_is_alike() -> None:
    assert best([row("wsdan", 4.0), row("pmg", 1.0)], NAMES, 400, 10, 300) == ("wsdan", pytest.approx(2.0))


def test_where_none_is_clearly_better_it_is_the_default() -> None:
    for points in (-4.0, 0.9):
        assert best([row("wsdan", points)], NAMES, 400, 10, 300) == (methods.DEFAULT_METHOD, 0.0)
    assert best([row("isqrt_cov", -4.0)], NAMES, 400, 10, 300) == ("plain", 0.0)
    assert best([row("wsdan", 4.0, n=1)] * 2, NAMES, 400, 10, 300) == ("wsdan", pytest.approx(1.6))


def test_sets_that_are_alike_count_more() -> None:
    rows = [
        *(row("wsdan", 5.0, photos=40000, classes=1000), row("wsdan", -5.0)),
        *(row("pmg", -5.0, photos=40000, classes=1000), row("pmg", 5.0)),
    ]
    assert best(rows, NAMES, 400, 10, 300)[0] == "pmg"
    assert best(rows, NAMES, 40000, 1000, 300)[0] == "wsdan"


def test_budgets_that_are_alike_count_more() -> None:
    rows = [row("wsdan", 5.0, budget="1h"), row("wsdan", -5.0, budget="1m"), row("pmg", 1.0, budget="1m")]
    assert best(rows, NAMES, 400, 10, 60)[0] == "pmg"
    assert best(rows, NAMES, 400, 10, 3600)[0] == "wsdan"


def test_little_that_was_measured_is_believed_less() -> None:
    often = [row("pmg", 3.0)] * 4
    assert best([row("wsdan", 4.0), *often], NAMES, 400, 10, 300)[0] == "pmg"


def test_heads_alone_are_compared_with_heads_alone() -> None:
    rows = [row("wsdan", 9.0), row("isqrt_cov", 2.0, budget="instant")]
    assert best(rows, NAMES, 400, 10, None)[0] == "isqrt_cov"
    assert best(rows, NAMES, 400, 10, 300)[0] == "wsdan"


def test_nothing_measured() -> None:
    assert best([], NAMES, 400, 10, 300) == (methods.DEFAULT_METHOD, None)
    assert best([row("herbs", 9.0)], ["plain"], 400, 10, 300) == ("plain", None)


def test_only_what_fits_the_photos(tmp_path: Path, photo_folder: Path) -> None:
    flat = Catalog.read(photo_folder)
    names = fitting(flat)
    assert {"plain", "wsdan"} <= set(names) and not {"transfg", "tree_rnn", "cnn"} & set(names)
    assert set(fitting(flat.with_column("boxes", ["[[0, 0, 9, 9]]"] * len(flat)))) - set(names) == {"fcos"}
    assert set(fitting(flat, instant=True)) == {card.name for card in methods.cards() if card.instant}


def test_options_are_resolved(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog.read(photo_folder)
    rows = [row("wsdan", 4.0), row("bilinear", 4.0, budget="instant")]
    rows += [row("plain", 0.0), row("plain", 0.0, budget="instant")]
    monkeypatch.setattr(choose, "measured", lambda: tuple(rows))

    def chosen(**options: Any) -> str:
        found, why = resolved({"method": "auto", **options}, catalog)
        assert found["method"] in why
        return str(found["method"])

    assert chosen(budget="5m") == chosen(epochs=3, budget=None) == chosen(mode="finetune") == "wsdan"
    assert chosen() == chosen(mode="instant") == chosen(budget=None) == "bilinear"
    assert resolved({"method": "pmg", "seed": 1}, catalog) == ({"method": "pmg", "seed": 1}, "")
