"""What the comparison of the methods found, as it stands in measured.csv (made by benchmarks/methods.py)."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("measured.csv")


class Measured(NamedTuple):
    """A method on a set of photos, each training within ``budget``; None where it was not measured.

    top1, spread: mean and standard deviation over ``n`` seeds; delta: points to plain, trained alike; training,
    answer: times the time of that plain, for a photo learned and for one answered; mark_hit: share of photos where its
    strongest place lies on the mark; per_minute: top-1 over the minutes of training; epochs: passes over the photos
    that it made; n_train, classes: of the set.
    """

    method: str
    set: str
    budget: str
    n: int | None
    top1: float | None
    spread: float | None
    delta: float | None
    training: float | None
    answer: float | None
    mark_hit: float | None
    per_minute: float | None
    epochs: float | None
    n_train: int | None
    classes: int | None


@cache
def measured() -> tuple[Measured, ...]:
    """All of it; nothing where nothing was measured yet."""
    if not TABLE.is_file():
        return ()
    with TABLE.open(newline="", encoding="utf-8") as file:
        return tuple(_row(row) for row in csv.DictReader(file))


def of(method: str) -> list[Measured]:
    """The rows of one method."""
    return [row for row in measured() if row.method == method]


def _row(row: dict[str, str]) -> Measured:
    whole = {name: int(row[name]) if row.get(name) else None for name in ("n", "n_train", "classes")}
    rest = {name: float(row[name]) if row.get(name) else None for name in Measured._fields[4:-2]}
    return Measured(row["method"], row["set"], row["budget"], **whole, **rest)  # type: ignore[arg-type]
