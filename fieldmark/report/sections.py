"""What the page says about an evaluation, the data and the settings, as plain values for the template."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from fieldmark.report import charts
from fieldmark.report.confusions import Confusions, confused_pairs, confusions, most_confused, similar_order
from fieldmark.report.matrix import heat_map
from fieldmark.runtime import metrics
from fieldmark.runtime.results import Evaluation

PAIRS, EXAMPLES = 10, 3  # confused pairs, and photos of each class (and of each mistake) in one
WRONG, BEST = 24, 12  # photos in the two galleries
PATCHES, SHOWN = 6, 24  # patches of a class's prototypes, and classes that show them
MATRIX = 400  # classes in the matrix
ZOOM, ZOOM_FROM = 14, 26  # classes in its enlarged block, and classes from which on there is one

Counts = Mapping[str, Mapping[str, int]]
Examples = Mapping[str, Sequence[str]]
Row = dict[str, Any]


class Mistakes:
    """Photos that were named wrong, surest first. names: (true class, given class) of each."""

    def __init__(self, shown: Evaluation, scores: np.ndarray, correct: np.ndarray):
        wrong = np.flatnonzero(~correct)
        self._places = wrong[np.argsort(-scores[wrong], kind="stable")]
        self._photos = shown.predictions
        columns = (self._photos[name].take(self._places).to_pylist() for name in ("label", "predicted"))
        self.names: list[tuple[str, str]] = list(zip(*columns, strict=True))

    def rows(self, some: list[int]) -> list[Row]:
        """All that is known of some of them: there may be millions, and few are shown."""
        return self._photos.take(self._places[np.array(some, int)]).to_pylist()  # type: ignore[no-any-return]


def evaluated(shown: Evaluation, data: Counts, examples: Examples) -> dict[str, Any]:
    """All that an evaluation adds to the page."""
    scores, correct = (shown.predictions[column].to_numpy() for column in ("score", "correct"))
    mistakes = Mistakes(shown, scores, correct)
    of = confusions(shown, MATRIX)
    of = of.take(similar_order(of))
    bins = metrics.reliability(scores, correct)
    zoom = of.take(most_confused(of, ZOOM)) if len(of.names) >= ZOOM_FROM and mistakes.names else None
    return {
        "n_classes": len(shown.per_class),
        "n_absent": len(shown.classes) - len(shown.per_class),
        "n_wrong": len(mistakes.names),
        "interval": charts.interval(shown.top1_ci95[0], shown.top1, shown.top1_ci95[1]),
        "pairs": _pairs(of, mistakes, examples),
        "matrix": _matrix(of, "Confusion matrix"),
        "zoom": _matrix(zoom, "Confusion matrix of the most confused classes") if zoom else None,
        "calibration": _calibration(float(scores.mean() - correct.mean()), bins.ece),
        "reliability": charts.reliability_diagram(bins),
        "coverage": charts.coverage_curve(scores, correct),
        "keeping": _keeping(scores, correct),
        "classes": _classes(shown, mistakes, data, examples),
        "wrong": mistakes.rows(_spread([label for label, _ in mistakes.names], WRONG, each=3)),
        "best": _surest(shown, scores, correct),
    }


def large_photos(context: Mapping[str, Any]) -> list[str]:
    """Paths of the large pictures of a page, what matters most first."""
    paths = []
    for pair in context["pairs"]:
        paths += [row["path"] for row in pair["mistakes"]] + pair["examples_a"] + pair["examples_b"]
    return paths + [row["path"] for row in context["wrong"] + context["best"]]


def answered_photos(context: Mapping[str, Any]) -> list[str]:
    """Paths of the photos of a page whose answers are shown, what matters most first."""
    rows = [row for pair in context["pairs"] for row in pair["mistakes"]]
    return list(dict.fromkeys(row["path"] for row in rows + context["wrong"] + context["best"]))


def prototypes(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The prototypes that speak most for each class, as patches of photos. rows: of prototypes.csv."""
    by_class: dict[str, list[Row]] = {}
    for row in rows:
        own = by_class.setdefault(str(row["label"]), [])
        if len(own) < PATCHES:
            x, y, w, h = (int(row[name]) for name in "xywh")
            own.append({**row, "box": (x, y, x + w, y + h)})
    return [{"label": label, "rows": own} for label, own in list(by_class.items())[:SHOWN]]


def splits(data: Counts) -> list[Row]:
    """One row a split that has photos."""
    rows, usual = [], ("train", "val", "test")
    for split, counts in sorted(data.items(), key=lambda item: (*usual, item[0]).index(item[0])):
        n = [count for count in counts.values() if count]
        if n:
            numbers = {"photos": sum(n), "classes": len(n), "least": min(n), "most": max(n)}
            strip = charts.counts_strip(n)
            rows.append({"name": split, "median": float(np.median(n)), "strip": strip, **numbers})
    return rows


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings as rows of text; nested names are joined by dots."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(value)


def _matrix(of: Confusions, label: str) -> Row:
    cells = [[r, c, int(of.counts[r, c])] for r, c in np.argwhere(of.counts).tolist()]
    told = {"names": of.names, "totals": of.totals.tolist(), "cells": cells}
    return {
        "svg": heat_map(of.names, of.counts, of.totals.tolist(), label),
        "json": _json(told),
        "n": len(of.names),
    }


def _pairs(of: Confusions, mistakes: Mistakes, examples: Examples) -> list[Row]:
    """The most confused pairs: examples of both classes, and the photos that were mistaken, surest first."""
    by_pair: dict[tuple[str, str], list[int]] = {}
    for place, names in enumerate(mistakes.names):
        by_pair.setdefault(names, []).append(place)
    pairs = []
    for pair in confused_pairs(of, PAIRS):
        there = by_pair.get((pair.a, pair.b), [])[:EXAMPLES]
        back = by_pair.get((pair.b, pair.a), [])[: EXAMPLES + 1 - len(there)]
        sides = {f"examples_{side}": list(examples.get(name, ()))[:EXAMPLES]
                 for side, name in (("a", pair.a), ("b", pair.b))}  # fmt: skip
        pairs.append({"pair": pair, "mistakes": mistakes.rows(there + back), **sides})
    return pairs


def _classes(shown: Evaluation, mistakes: Mistakes, data: Counts, examples: Examples) -> list[Row]:
    """The rows of the per-class table, worst first."""
    taken_for: dict[str, tuple[str, int]] = {}
    for (label, predicted), n in Counter(mistakes.names).most_common():
        taken_for.setdefault(label, (predicted, n))
    rows = []
    for name, scores in shown.per_class.items():
        other, times = taken_for.get(name, (None, 0))
        face = next(iter(examples.get(name, ())), None)
        train = sum(data.get(split, {}).get(name, 0) for split in ("train", "val"))
        rows.append(
            {"name": name, "train": train, "taken_for": other, "taken": times, "face": face, **scores}
        )
    return sorted(rows, key=lambda row: (row["f1"], row["name"]))


def _spread(labels: list[str], limit: int, each: int) -> list[int]:
    """The places of the first photos, at most ``each`` of one class."""
    seen: Counter[str] = Counter()
    chosen: list[int] = []
    for place, label in enumerate(labels):
        if seen[label] < each and len(chosen) < limit:
            seen[label] += 1
            chosen.append(place)
    return chosen


def _surest(shown: Evaluation, scores: np.ndarray, correct: np.ndarray) -> list[Row]:
    """Right answers, surest first, one a class."""
    right = np.flatnonzero(correct)
    order = right[np.argsort(-scores[right], kind="stable")][: 100 * BEST]
    some = _spread(shown.predictions["label"].take(order).to_pylist(), BEST, each=1)
    return shown.predictions.take(order[some]).to_pylist()  # type: ignore[no-any-return]


def _calibration(over: float, ece: float) -> str:
    """A sentence on whether the stated probabilities can be believed."""
    if ece < 0.02:
        return "The stated probabilities can be taken at their word."
    if abs(over) < 0.01:
        return "Stated probabilities are right on average, but not at every level."
    surer = "surer" if over > 0 else "less sure"
    return f"On average the model is {100 * abs(over):.1f} points {surer} than it is right."


def _keeping(scores: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    """Accuracy, and the score to ask for, when only the surest share of the photos is answered."""
    order, rows = np.argsort(-scores, kind="stable"), []
    for share in (1.0, 0.9, 0.8, 0.5):
        kept = order[: max(1, round(share * len(order)))]
        rows.append(
            {"share": share, "accuracy": float(correct[kept].mean()), "score": float(scores[kept[-1]])}
        )
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, float):
        return f"{value:.5g}"
    return "—" if value is None else str(value)


def _json(value: Any) -> Markup:
    """JSON that is safe inside a script element, whatever the class names hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
