"""Which method for these photos? What the comparison supports (`fieldmark.methods.measured`), or the default."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fieldmark import methods
from fieldmark.data.boxes import has_boxes
from fieldmark.methods.measured import Measured, measured
from fieldmark.runtime.catalog import Catalog
from fieldmark.train.recipe import BUDGET, INSTANT, seconds

#: The name that asks for a choice.
AUTO = "auto"
#: What we believe before anything is measured, no points above plain, counts as much as so many sets that are alike.
PRIOR = 1.0
#: A set that has twice as many classes or photos a class, or a budget twice as long, counts this much less.
TWICE = 0.7
#: Seeds from which on a measurement counts whole, and points by which a method must be better than the default.
SEEDS, CLEARLY = 3, 0.5


def fitting(catalog: Catalog, instant: bool = False) -> list[str]:
    """Methods that these photos and a convolutional backbone can serve, with a frozen backbone if ``instant``."""
    lacking = {
        "transformer",
        *(() if catalog.ranks() else ("tree",)),
        *(() if has_boxes(catalog) else ("boxes",)),
    }
    known = [card for card in methods.cards() if card.backbone and (card.instant or not instant)]
    return [card.name for card in known if not lacking & set(card.needs)]


def resolved(options: Mapping[str, Any], catalog: Catalog) -> tuple[dict[str, Any], str]:
    """The options of training with a method's name where a choice was asked for, and why that one ("": none was)."""
    if options.get("method") != AUTO:
        return dict(options), ""
    given = {name for name, value in options.items() if value is not None}
    timed = (options["mode"] != INSTANT) if "mode" in given else bool({"budget", "epochs"} & given)
    budget = options.get("budget") or BUDGET
    time = (seconds(budget) if isinstance(budget, str) else float(budget)) if timed else None
    learned = [split for split in catalog.splits if split != "test"]
    name, points = best(
        measured(), fitting(catalog, not timed), len(learned), max(1, len(catalog.classes)), time
    )
    why = "the default, since nothing like this was measured"
    if points is not None:
        why = f"{points:+.1f} points to plain are to be expected of it, by sets of photos like these"
    return {**options, "method": name}, f"method {name}: {why}"


def best(
    rows: Sequence[Measured], names: Sequence[str], photos: int, classes: int, time: float | None
) -> tuple[str, float | None]:
    """The method of ``names`` with the most points above plain in the same time, and how many: the mean of what was
    measured, weighted by likeness, and drawn to 0 where little was. The default, if none is clearly better; with None,
    where nothing was measured.

    time: seconds (None: only heads are fitted; budgets are then compared with such alone).
    """
    plain = {(row.set, row.budget): row.top1 for row in rows if row.method == "plain"}
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        beside, apart = plain.get((row.set, row.budget)), _apart(row, photos, classes, time)
        if row.method in names and row.top1 is not None and beside is not None and apart is not None:
            weight = TWICE**apart * min(1.0, (row.n or 1) / SEEDS)
            found.setdefault(row.method, []).append((weight, 100 * (row.top1 - beside)))
    usual = methods.DEFAULT_METHOD if methods.DEFAULT_METHOD in names else "plain"
    if not found.keys() - {"plain"}:
        return usual, None
    points = {
        name: sum(w * points for w, points in pairs) / (sum(w for w, _ in pairs) + PRIOR)
        for name, pairs in found.items()
    }
    points.setdefault(usual, 0.0)  # it was not measured
    name = max(points, key=lambda one: points[one])
    if points[name] < points[usual] + CLEARLY:
        name = usual
    return name, points[name]


def _apart(row: Measured, photos: int, classes: int, time: float | None) -> float | None:
    """How often something must be doubled or halved to come from what was measured to what is asked; None where
    they cannot be compared."""
    if not (row.n_train and row.classes) or (row.budget == INSTANT) != (time is None):
        return None
    ratios = [classes / row.classes, (photos / classes) / (row.n_train / row.classes)]
    if time is not None:
        ratios.append(time / seconds(row.budget))
    return sum(abs(math.log2(ratio)) for ratio in ratios)
