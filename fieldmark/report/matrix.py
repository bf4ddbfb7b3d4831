"""The confusion matrix as an SVG heat map; colours are the style sheet's, hover names the script's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from unicodedata import east_asian_width

import numpy as np
from markupsafe import Markup

from fieldmark.report.charts import number

#: A matrix with more classes than this has no names along its sides: they appear under the pointer.
NAMED = 120
_WIDTH = 1080  # pixels of the largest matrix
_CELL = 60  # pixels of the largest cell
_LONGEST = 26  # letters of a name along a side
_LEAST = 2.5  # pixels of a mistake's mark, however small the cells

_OPEN = Markup(
    '<svg class="matrix" viewBox="0 0 {width} {width}" style="max-width:{width}px;min-width:{least}px" '
    'role="img" tabindex="0" aria-label="{label}" data-origin="{gutter}" data-cell="{cell}">'
    '<rect class="ground" x="{gutter}" y="{gutter}" width="{side}" height="{side}"/>'
)
_NAMES = Markup(
    '<text class="row" data-i="{i}" x="{end}" y="{middle}" font-size="{font}">{name}</text>'
    '<text class="column" data-i="{i}" transform="translate({middle} {end}) rotate(-90)" '
    'font-size="{font}">{name}</text>'
)


def heat_map(names: Sequence[str], counts: np.ndarray, totals: Sequence[int], label: str) -> Markup:
    """``counts`` [K, K], shaded by their share of ``totals`` (photos of the true class, by row)."""
    k, named = len(names), len(names) <= NAMED
    names = [_short(name) for name in names] if named else names
    longest = max(map(_columns, names)) if named else 0
    font = min(13.0, max(7.5, 0.92 * (_WIDTH - 5 * longest) / k))
    gutter = round(longest * font * 0.61 + 10) if named else 4
    cell = min(float(_CELL), (_WIDTH - gutter) / k)
    gap = 1.0 if cell >= 8 else 0.0
    width = gutter + cell * k + 2
    parts = [
        _OPEN.format(
            width=number(width),
            least=number(min(width, 620)),
            label=label,
            gutter=gutter,
            cell=number(cell),
            side=number(cell * k),
        ),
        _squares("own", None, [(i, i) for i in range(k)], gutter, cell, gap),
    ]
    shades: dict[tuple[str, float], list[tuple[int, int]]] = defaultdict(list)
    for row, column in np.argwhere(counts).tolist():
        share = counts[row, column] / max(1, totals[row])
        kind, depth = ("hit", share) if row == column else ("miss", share**0.5)
        shades[kind, round(0.12 + 0.88 * depth, 2)].append((row, column))
    for (kind, alpha), cells in sorted(shades.items()):
        parts.append(_squares(kind, alpha, cells, gutter, cell, gap))
        if cell >= 17:
            parts += [_count(counts[at], *at, alpha > 0.55, gutter, cell) for at in cells]
    if gutter > 80:
        for up, text in ((20, "named →"), (6, "true ↓")):
            parts.append(
                Markup(f'<text class="row" x="{gutter - 5}" y="{gutter - up}" font-size="10">{text}</text>')
            )
    for i, name in enumerate(names if named else ()):
        middle = number(gutter + (i + 0.5) * cell)
        parts.append(_NAMES.format(i=i, end=gutter - 5, middle=middle, font=number(font), name=name))
    parts.append(Markup('<rect class="band" hidden="hidden"/><rect class="band" hidden="hidden"/></svg>'))
    return Markup("").join(parts)


def _squares(
    kind: str, alpha: float | None, cells: list[tuple[int, int]], gutter: int, cell: float, gap: float
) -> Markup:
    """One path for all cells of a shade: a thousand classes stay a small file."""
    size = cell - gap if kind == "own" else max(cell - gap, _LEAST)
    side, start = number(size), gutter + (cell - size) / 2
    path = "".join(
        f"M{number(start + column * cell)} {number(start + row * cell)}h{side}v{side}h-{side}z"
        for row, column in cells
    )
    opacity = "" if alpha is None else f' fill-opacity="{alpha}"'
    return Markup(f'<path class="{kind}"{opacity} d="{path}"/>')


def _count(count: int, row: int, column: int, strong: bool, gutter: int, cell: float) -> Markup:
    x, y = number(gutter + (column + 0.5) * cell), number(gutter + (row + 0.5) * cell)
    kind = "count strong" if strong else "count"
    return Markup(
        f'<text class="{kind}" x="{x}" y="{y}" font-size="{number(min(15, cell * 0.42))}">{count}</text>'
    )


def _short(name: str) -> str:
    """The name in one line, cut to what fits beside the matrix."""
    name = " ".join(name.split())
    if _columns(name) <= _LONGEST:
        return name
    while _columns(name) >= _LONGEST:
        name = name[:-1]
    return name + "…"


def _columns(name: str) -> int:
    """How wide a name is, in Latin letters: those of Chinese, Japanese and Korean are twice as wide."""
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in name)
