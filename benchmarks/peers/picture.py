"""The rows of finetune.py as a picture (matplotlib, which only this needs) and as the table of the docs."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import summary

PAGE = summary.HERE.parent / "docs" / "finetuning-benchmarks.md"
PICTURE = PAGE.parent / "pictures" / "finetune.svg"
#: The method that is drawn strongest.
OURS = "fieldmark"


class Cell(NamedTuple):
    """What was measured: one method on one set with one budget and seed."""

    method: str
    minutes: float
    set: str
    seed: str


Measured = dict[str, summary.Row]


def cells(rows: list[summary.Row]) -> dict[Cell, Measured]:
    """The rows of each finished cell by what they measure: "top-1", "seconds", "photos a second" ..."""
    found: dict[Cell, Measured] = defaultdict(dict)
    for row in rows:
        if match := re.fullmatch(r"(\w+), ([\d.]+) min, (.+)", row["what"]):
            found[Cell(match[1], float(match[2]), row["set"], row["seed"])][match[3]] = row
    return {cell: told for cell, told in found.items() if {"top-1", "seconds"} <= told.keys()}


def line(found: dict[Cell, Measured], method: str, set: str) -> list[list[float]]:
    """Minutes, top-1 and its interval of a method, a list each, by budget; means over seeds."""
    points = []
    for minutes in sorted({cell.minutes for cell in found if cell.method == method and cell.set == set}):
        told = [these for cell, these in found.items() if cell[:3] == (method, minutes, set)]
        took = statistics.mean(float(these["seconds"]["value"]) / 60 for these in told)
        of_top1 = ("value", "low", "high")
        points.append(
            [took, *(statistics.mean(float(these["top-1"][name]) for these in told) for name in of_top1)]
        )
    return [list(column) for column in zip(*points, strict=True)]


def draw(results: Path, picture: Path) -> None:
    """Top-1 against minutes from the start: a panel a set, a line a method. Of the machine with the most rows."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"svg.hashsalt": "fieldmark", "svg.fonttype": "none"}
    rows = summary.of_one_machine(summary.read(results))
    found, machine = cells(rows), rows[0]["machine"] if rows else ""
    if not found:
        raise SystemExit(f"nothing to draw in {results}")
    sets, methods = (
        list(dict.fromkeys(names)) for names in ((c.set for c in found), (c.method for c in found))
    )
    budgets = sorted({cell.minutes for cell in found})
    figure, panels = pyplot.subplots(1, len(sets), figsize=(5 * len(sets), 4), squeeze=False)
    for panel, name in zip(panels[0], sets, strict=True):
        for method in methods:
            if not (columns := line(found, method, name)):
                continue
            minutes, top1, low, high = columns
            style = {"linewidth": 2.5, "color": "teal"} if method == OURS else {"linewidth": 1.2}
            drawn = panel.plot(minutes, top1, "o-", label=method, **style)[0]
            panel.fill_between(minutes, low, high, color=drawn.get_color(), alpha=0.12)
        panel.set(title=name, xlabel="minutes from start to saved model", ylabel="test top-1", xscale="log")
        panel.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None})
    print(f"{picture.name}: {len(found)} cells of {machine}")


def show(page: Path = PAGE) -> None:
    """Put the picture into the page, where it said that nothing was measured."""
    text = page.read_text(encoding="utf-8")
    slot = re.compile(r"(<!-- picture finetune -->\n).*?(<!-- end picture -->)", re.DOTALL)
    link = f"![Top-1 against minutes](pictures/{PICTURE.name})\n"
    page.write_text(slot.sub(lambda match: match[1] + link + match[2], text), encoding="utf-8")


def tabulate(results: Path) -> None:
    """finetune_table.csv and finetune_speed.csv beside the results: a row a set, method and budget, a column a measure;
    machine after machine, since only what one of them measured can be compared."""
    rows = summary.read(results)
    machines = Counter(row["machine"] for row in rows)
    lines = [
        {**line, "machine": machine.split("; ")[1]}
        for machine, _ in machines.most_common()
        for line in _lines(cells([row for row in rows if row["machine"] == machine]))
    ]
    tops = ["set", "method", "seeds", "gave", "top-1", "above the best peer", "seconds", "epochs", "machine"]
    summary.write(results.with_name("finetune_table.csv"), [_only(line, tops) for line in lines])
    speeds = ["set", "method", *(name for line in lines for name in line if "photos a second" in name)]
    rated = [_only(line, dict.fromkeys([*speeds, "machine"])) for line in lines]
    summary.write(results.with_name("finetune_speed.csv"), [line for line in rated if len(line) > 3])


def _lines(found: dict[Cell, Measured]) -> list[summary.Row]:
    """A line a set, method and budget: means over seeds."""
    kinds: dict[Cell, list[Measured]] = defaultdict(list)
    for cell, told in found.items():
        kinds[cell._replace(seed="")].append(told)

    def top1(cell: Cell) -> float:
        return statistics.mean(float(told["top-1"]["value"]) for told in kinds[cell])

    lines = []
    for cell in sorted(kinds, key=lambda cell: (cell.set, cell.minutes, -top1(cell))):
        line = {"set": cell.set, "method": f"{cell.method}, {cell.minutes:g} min"}
        for name in dict.fromkeys(name for told in kinds[cell] for name in told):
            values = [float(told[name]["value"]) for told in kinds[cell] if name in told]
            line[name] = f"{statistics.mean(values):.4g}"
        instant = sum(told["seconds"]["note"].startswith("instant") for told in kinds[cell])
        line["gave"] = "the instant model" if instant == len(kinds[cell]) else ""
        line["seeds"] = str(len(kinds[cell]))
        lines.append(line)
    return lines


def _only(line: summary.Row, names: Iterable[str]) -> summary.Row:
    return {name: line[name] for name in names if name in line}
