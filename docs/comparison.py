"""The page docs/methods/comparison.md, from what was measured; `docs/methods.py` writes it."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from fieldmark import methods
from fieldmark.methods.measured import Measured, measured

PLOT = Path(__file__).with_name("pictures") / "methods" / "comparison.svg"
_FRONT = """# Methods, measured

<!-- Made by docs/methods.py from fieldmark/methods/measured.csv: benchmarks/methods.py measures. -->

The same backbone (EfficientNet-Lite0), photos, seeds and wall time for every method, on two cores; test photos were
judged once. **Points** are those of top-1 above `plain` (average pooling, trained like the method: one that learned
from new views of the photos, and not from kept maps, is compared with `plain` from new views). Costs are times those of
`plain` trained alike: of a photo learned, and of one answered. *Top-1 a minute* is the mean of top-1 over the minutes
that the training took; *epochs* are the passes over the photos that it had time for; *on the mark* is the share of
photos whose strongest place lies on the mark, where that is known: all means over the sets. An empty cell was not
measured. ±: standard deviation over the seeds, where there are several; with one seed, a point or two says nothing.
Rows may be of several versions of fieldmark: the column `version` of benchmarks/results/methods.csv says which.
"""
_HEADS = {
    "instant": "## Heads alone, the backbone frozen (`--mode instant`)",
}
#: Columns of means over the sets: of which field, their head and how they are written.
_MEANS = {
    "training": ("training", ".1f"),
    "answer": ("answer", ".1f"),
    "per_minute": ("top-1 a minute", ".2f"),
    "epochs": ("epochs", ".1f"),
    "mark_hit": ("on the mark", ".2f"),
}
#: What to know before reading the rows of a budget.
_SAID = {
    "60s": "A screening: one seed, and no instant model to fall back on (`--no-floor`). Methods that crop or shuffle\n"
    "photos come to 0 to 2 epochs in a minute on two cores, `plain` to 5. It says what a minute buys, not what a\n"
    "method can reach.",
}


def budgets(rows: tuple[Measured, ...]) -> list[str]:
    """Those measured, as they stand in the table."""
    return list(dict.fromkeys(row.budget for row in rows))


def text() -> str:
    """The whole page."""
    rows = measured()
    lines = [_FRONT]
    if not rows:
        lines += ["Nothing was measured yet.", ""]
    if PLOT.is_file():
        lines += [f"![Points above plain, and what they cost](../pictures/methods/{PLOT.name})", ""]
    for budget in budgets(rows):
        own = [row for row in rows if row.budget == budget]
        lines += [_HEADS.get(budget, f"## {budget} of training"), ""]
        lines += [_SAID[budget], ""] if budget in _SAID else []
        lines += [*_table(own), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: list[Measured]) -> list[str]:
    sets = list(dict.fromkeys(row.set for row in rows))
    seeds = sorted({row.n for row in rows if row.n})
    known = {card.name: card for card in methods.cards()}
    idle = sorted({f"`{row.method}` ({row.set})" for row in rows if row.top1 is None})
    by_name: dict[str, dict[str, Measured]] = {}
    for row in (row for row in rows if row.top1 is not None):
        by_name.setdefault(row.method, {})[row.set] = row

    def points(name: str) -> float:
        values = [row.delta for row in by_name[name].values() if row.delta is not None]
        return mean(values) if values else 0.0

    heads = ["method", *[f"{name}: top-1" for name in sets], *[f"{name}: points" for name in sets]]
    heads += [head for head, _ in _MEANS.values()]
    lines = (
        [f"Seeds: {' to '.join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))} a cell.", ""]
        if seeds
        else []
    )
    lines += [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    for name in sorted(by_name, key=lambda one: -points(one)):
        own = by_name[name]
        link = f"[`{name}`]({name}.md)" if name in known else name
        cells = [link, *[_top1(own.get(one)) for one in sets]]
        cells += [_number(own[one].delta if one in own else None, "+.1f") for one in sets]
        for what, (_, how) in _MEANS.items():
            values = [value for row in own.values() if (value := getattr(row, what)) is not None]
            cells.append(_number(mean(values) if values else None, how))
        lines.append(_line(cells))
    return lines + (["", f"Could not be trained in this time: {', '.join(idle)}."] if idle else [])


def _top1(row: Measured | None) -> str:
    if row is None or row.top1 is None:
        return ""
    return f"{row.top1:.3f}" + (f" ± {row.spread:.3f}" if row.spread is not None else "")


def _number(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
