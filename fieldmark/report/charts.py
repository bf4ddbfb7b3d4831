"""The page's small drawings, as SVG text. Colours come from the style sheet, so light and dark both work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from fieldmark.runtime.metrics import Reliability

_LEFT, _TOP, _SIDE, _LOW = 44, 10, 300, 64  # a plot's corner, its width, and the strip under a square
_QUARTERS = (0, 0.25, 0.5, 0.75, 1)


def number(value: float) -> str:
    """Two decimals at most, for coordinates."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def reliability_diagram(bins: Reliability) -> Markup:
    """Accuracy against confidence in bins, each gap to the diagonal, and how many photos a bin holds."""
    base, floor = _TOP + _SIDE, _TOP + _SIDE + _LOW
    parts = [_grid(tick, _TOP + _SIDE * (1 - tick)) for tick in _QUARTERS]
    wide = _SIDE / len(bins.count) - 2
    for i in np.flatnonzero(bins.count):
        x = _LEFT + (wide + 2) * i + 1
        right, said = bins.accuracy[i], bins.confidence[i]
        high = (_LOW - 8) * bins.count[i] / bins.count.max()
        parts += [
            f"<g><title>{bins.count[i]} photos: said {said:.1%}, right {right:.1%}</title>",
            _rect("hit", x, base - _SIDE * right, wide, _SIDE * right),
            _rect("gap", x, base - _SIDE * max(right, said), wide, _SIDE * abs(right - said)),
            _rect("bar", x, floor - high, wide, high) + "</g>",
        ]
    parts.append(f'<path class="diagonal" d="M{_LEFT} {base}L{_LEFT + _SIDE} {_TOP}"/>')
    label = f"Reliability diagram: share of right answers in {len(bins.count)} bins of stated probability"
    return _plot(parts, label, "stated probability, and how many photos")


def coverage_curve(scores: np.ndarray, correct: np.ndarray) -> Markup:
    """Accuracy when only the surest share of the photos is answered."""
    right = correct[np.argsort(-scores, kind="stable")]
    n, height = len(right), _SIDE + _LOW
    accuracy = right.cumsum() / np.arange(1, n + 1)
    first = min(n - 1, max(10, n // 50))  # the first few photos are mere noise
    keep = np.unique(np.linspace(first, n - 1, 160).astype(int))
    low = min(0.95, np.floor(accuracy[keep].min() * 10) / 10)

    def y(value: float) -> float:
        return _TOP + height * (1 - (value - low) / (1 - low))

    parts = [_grid(tick, y(tick)) for tick in np.linspace(low, 1, 6)]
    points = [f"{number(_LEFT + _SIDE * (i + 1) / n)} {number(y(accuracy[i]))}" for i in keep]
    start = points[0].split()[0]
    parts.append(f'<path class="area" d="M{start} {_TOP + height}L{"L".join(points)}V{_TOP + height}z"/>')
    parts.append(f'<path class="line" d="M{"L".join(points)}"/>')
    return _plot(parts, "Accuracy against the share of photos answered", "photos answered, surest first")


def interval(low: float, value: float, high: float) -> Markup:
    """A share and its interval on a line from 0 to 1."""
    a, x, b = (number(400 * share) for share in (low, value, high))
    return Markup(
        '<svg class="interval" viewBox="-6 0 412 26" aria-hidden="true"><path class="rail" d="M0 9H400"/>'
        f'<path class="span" d="M{a} 9H{b}"/><circle cx="{x}" cy="9" r="5"/>'
        '<text x="0" y="25">0</text><text x="400" y="25" text-anchor="end">100%</text></svg>'
    )


def counts_strip(counts: Sequence[int]) -> Markup:
    """Photos per class, most first, as a row of bars."""
    ordered, width, height = sorted(counts, reverse=True), 640, 72
    step = width / len(ordered)
    bars = "".join(
        f"M{number(i * step)} {height}v-{number(height * n / max(1, ordered[0]))}"
        f"h{number(step * 0.85 if step > 4 else step)}V{height}z"
        for i, n in enumerate(ordered)
    )
    label = f"Photos per class, from {ordered[0]} to {ordered[-1]}"
    return Markup(
        f'<svg class="strip" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}"><path class="bar" d="{bars}"/></svg>'
    )


def _plot(parts: list[str], label: str, below: str) -> Markup:
    """The frame that both plots share: a percent scale below, titles on two sides."""
    floor = _TOP + _SIDE + _LOW
    for tick in _QUARTERS:
        x = number(_LEFT + _SIDE * tick)
        parts.append(f'<text class="tick x" x="{x}" y="{floor + 15}">{tick:.0%}</text>')
    middle = floor / 2
    parts += [
        f'<text class="axis" x="{_LEFT + _SIDE / 2}" y="{floor + 38}">{below}</text>',
        f'<text class="axis" transform="translate(9 {middle}) rotate(-90)">named right</text></svg>',
    ]
    head = (
        f'<svg class="chart" viewBox="0 0 {_LEFT + _SIDE + 22} {floor + 48}" role="img" aria-label="{label}">'
    )
    return Markup(head + "".join(parts))


def _grid(tick: float, y: float) -> str:
    text = f"{number(round(100 * tick, 1))}%"
    return (
        f'<path class="grid" d="M{_LEFT} {number(y)}h{_SIDE}"/>'
        f'<text class="tick y" x="{_LEFT - 6}" y="{number(y)}">{text}</text>'
    )


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect class="{kind}" x="{number(x)}" y="{number(y)}" '
        f'width="{number(width)}" height="{number(height)}"/>'
    )
