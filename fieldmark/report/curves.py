"""What the page says of a training: its curves as drawings, and in words whether it overfits.

Curves are the rows of `Trained.curve`: an evaluation each, with phase, epoch, lr, held_out_accuracy, held_out_loss,
and train_loss, train_accuracy from the first step on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape

from fieldmark.report.charts import number

Row = Mapping[str, Any]
Points = list[tuple[float, float]]

_WIDE, _HIGH = 460, 270
_LEFT, _RIGHT, _TOP, _BASE = 54, 446, 12, 226  # the corners of a plot
#: A held-out loss that ends so much above its least, in shares of it, has risen.
RISEN = 0.05
#: A gap that is smaller says nothing; nor does one within two standard errors of the held-out accuracy.
GAP = 0.05
#: Held-out loss that fell by this share in the last third of the training was still falling.
FALLING = 0.03
_ENDS = {
    "the budget is spent": "It ended when the budget was spent.",
    "interrupted": "It was interrupted.",
    "no better for a while": "It ended early, as held-out photos were answered no better for a while.",
}


class Series(NamedTuple):
    """One line of a plot. kind: its class in the style sheet."""

    name: str
    kind: str
    points: Points


def section(
    curve: Sequence[Row],
    chosen: Mapping[str, Any],
    mode: str,
    plan: Sequence[str] = (),
) -> dict[str, Any] | None:
    """All that the page says of a training by steps; None where there was none.

    chosen: of `Trained`; mode: of the model that was kept; plan: a line a phase.
    """
    if not curve:
        return None
    rows = continued(curve)
    return {
        "plan": list(plan),
        "outcome": _outcome(chosen, mode),
        "gap": overfitting(rows, int(chosen.get("held_out", 0))),
        "charts": _charts(rows, chosen.get("held_out_top1_instant")),
    }


def continued(curve: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows with epochs that go on from phase to phase."""
    rows: list[dict[str, Any]] = []
    before, phase = 0.0, None
    for row in curve:
        if rows and row.get("phase") != phase:
            before = rows[-1]["epoch"]
        phase = row.get("phase")
        rows.append({**row, "epoch": before + row["epoch"]})
    return rows


def overfitting(rows: Sequence[Row], photos: int) -> str:
    """A few sentences on training photos against held-out ones. rows: `continued`; photos: held out."""
    loss, trained = _points(rows, "held_out_loss"), _points(rows, "train_loss")
    right, learned = _points(rows, "held_out_accuracy"), _points(rows, "train_accuracy")
    if len(loss) < 3 or len(trained) < 2 or not right:
        return "It was looked at too seldom to tell whether it overfits."
    turn, least = min(loss, key=lambda point: point[1])
    first, end = loss[0][0], loss[-1]
    since = [value for epoch, value in trained if epoch >= turn]
    if end[1] > least * (1 + RISEN) and len(since) > 1 and since[-1] < since[0]:
        return (
            f"It overfits from epoch {turn:.1f} on: the loss on its training views went on falling, while that on"
            f" held-out photos rose from {least:.3f} to {end[1]:.3f}. More photos or stronger augmentation will help,"
            " longer training will not."
        )
    gap = learned[-1][1] - right[-1][1] if learned else 0.0
    p = right[-1][1]
    if gap > max(GAP, 2 * math.sqrt(p * (1 - p) / max(1, photos))):
        return (
            f"It knows its training photos better than others: at the end it named {learned[-1][1]:.1%} of its training"
            f" views right, but {p:.1%} of the held-out photos. The loss on held-out photos did not rise, so this did"
            " no harm yet; more photos of the confused classes would narrow the gap."
        )
    third = [value for epoch, value in loss if epoch <= end[0] - (end[0] - first) / 3]
    if third and end[1] < third[-1] * (1 - FALLING):
        return (
            "There is no sign that it overfits, and the loss on held-out photos was still falling at the end: longer"
            " training may make it better."
        )
    return "There is no sign that it overfits: held-out photos are answered about as well as training views."


def _outcome(chosen: Mapping[str, Any], mode: str) -> str:
    """What it came to, beside instant mode where there was such a model."""
    photos, reached = chosen.get("held_out"), chosen.get("held_out_top1")
    if photos is None or reached is None:
        return ""
    instant, end = chosen.get("held_out_top1_instant"), _ENDS.get(str(chosen.get("stopped")), "")
    if instant is None:
        said = f"It named {reached:.1%} of {photos:,} held-out photos right."
    elif mode == "instant":
        said = (
            f"Of {photos:,} held-out photos fine-tuning named {reached:.1%} right, instant mode {instant:.1%}: the"
            " instant model was kept."
        )
    else:
        said = f"Of {photos:,} held-out photos it names {reached:.1%} right; instant mode named {instant:.1%} of them."
    return f"{said} {end}".strip()


def _charts(rows: Sequence[Row], instant: float | None) -> list[dict[str, Any]]:
    """The drawings, each with its title and the names of its lines."""
    right, learned = _points(rows, "held_out_accuracy"), _points(rows, "train_accuracy")
    known = dict(right)
    gap = [(epoch, value - known[epoch]) for epoch, value in learned if epoch in known]
    held, views = "held-out photos", "training views"
    plots = [
        ("Named right", [Series(held, "held", right), Series(views, "train", learned)], True, instant),
        (
            "Loss",
            [
                Series(held, "held", _points(rows, "held_out_loss")),
                Series(views, "train", _points(rows, "train_loss")),
            ],
            False,
            None,
        ),
        ("Gap: training views less held-out photos", [Series("gap", "gapline", gap)], True, 0.0),
        ("Learning rate", [Series("learning rate", "held", _points(rows, "lr"))], False, None),
    ]
    return [
        {
            "title": title,
            "svg": plot(series, title, percent, level),
            "legend": [(one.kind, one.name) for one in series] if len(series) > 1 else [],
            "instant": title == "Named right" and level is not None,
        }
        for title, series, percent, level in plots
        if any(len(one.points) > 1 for one in series)
    ]


def plot(series: Sequence[Series], label: str, percent: bool, level: float | None = None) -> Markup:
    """Lines over epochs. percent: the values are shares; level: a value to compare with, as a dotted line."""
    x = np.array([point[0] for one in series for point in one.points])
    y = np.array([point[1] for one in series for point in one.points] + ([] if level is None else [level]))
    across, up = ticks(0.0, max(float(x.max()), 1e-9)), ticks(float(y.min()), float(y.max()))
    if not percent:
        up = ticks(min(0.0, float(y.min())), float(y.max()))
    elif float(y.max()) <= 1 < up[-1]:
        up = [tick for tick in up if tick <= 1 + 1e-9]
    low, high = up[0], max(up[-1], float(y.max()))
    end = max(across[-1], float(x.max()))

    def place(point: tuple[float, float]) -> tuple[str, str]:
        share = (point[1] - low) / max(high - low, 1e-12)
        return number(_LEFT + (_RIGHT - _LEFT) * point[0] / end), number(_BASE - (_BASE - _TOP) * share)

    parts = []
    for tick in up:
        at = place((0.0, tick))[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {at}H{_RIGHT}"/>')
        parts.append(f'<text class="tick y" x="{_LEFT - 6}" y="{at}">{_told(tick, percent)}</text>')
    for tick in across:
        at = place((tick, low))[0]
        parts.append(f'<text class="tick x" x="{at}" y="{_BASE + 16}">{tick:g}</text>')
    if level is not None:
        parts.append(f'<path class="level" d="M{_LEFT} {place((0.0, level))[1]}H{_RIGHT}"/>')
    for one in series:
        placed = [" ".join(place(point)) for point in one.points]
        if len(placed) > 1:
            parts.append(f'<path class="line {one.kind}" d="M{"L".join(placed)}"/>')
        for point in one.points:
            cx, cy = place(point)
            said = f"epoch {point[0]:.1f}: {_told(point[1], percent)} {escape(one.name)}"
            parts.append(
                f'<circle class="dot {one.kind}" cx="{cx}" cy="{cy}" r="3"><title>{said}</title></circle>'
            )
    parts.append(f'<text class="axis" x="{(_LEFT + _RIGHT) / 2}" y="{_BASE + 38}">epochs</text></svg>')
    said = f"{escape(label)}, over epochs"
    head = f'<svg class="chart curve" viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="{said}">'
    return Markup(head + "".join(parts))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from below ``low`` to above ``high``, about so many."""
    span = high - low if high > low else max(abs(high), 1e-6)
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999) * power
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def _points(rows: Sequence[Row], name: str) -> Points:
    """(epoch, value) where there is one."""
    pairs = ((float(row["epoch"]), row.get(name)) for row in rows)
    return [(epoch, float(value)) for epoch, value in pairs if value is not None and math.isfinite(value)]


def _told(value: float, percent: bool) -> str:
    return f"{100 * value:.4g}%" if percent else f"{value:.3g}"
