"""Write ``docs/methods/`` from the methods themselves; with ``--check`` only look whether it is so.

A page a method: its card, its settings, what was measured (fieldmark/methods/measured.csv), a picture of what it looks
at (docs/pictures/methods, drawn by benchmarks/methods.py), where there is one, and the rows and the picture of a
benchmark of its own (benchmarks/results/NAME.csv, docs/pictures/NAME.png).
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import comparison

from fieldmark import methods
from fieldmark.methods import Card
from fieldmark.methods.measured import Measured, measured, of

FOLDER = Path(__file__).with_name("methods")
RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
PICTURES = Path(__file__).with_name("pictures") / "methods"
_FRONT = """# Methods

<!-- Made by docs/methods.py from the cards of the methods: change those, then run it. -->

`fieldmark train photos/ --method NAME --budget 10m` trains any of them, on any backbone that gives what it needs.
`fieldmark bench methods photos/` compares them on your own photos. Every method is one file in `fieldmark/methods/`;
`CONTRIBUTING.md` shows how to add one.

All methods learn by the same plan (`--optimizer`, rates, epochs), not each by its paper's; where else one differs from
its paper, its file says so and why.

*training* and *answer* are times the time of `plain` trained alike, for a photo learned and for one answered. Columns
named after sets of photos hold points of top-1 above `plain` with the same backbone, photos, seeds and time (of methods
that learned from new views of the photos, and not from kept maps: above `plain` from new views), in the longest time
that was measured: mostly a minute of two cores, in which methods that crop or shuffle photos come to an epoch or none.
An empty cell was not measured. [Methods, measured](comparison.md) has all of it, with the epochs. `--method auto` picks
what it supports for your photos.
What a method's page calls *published* is its authors' own result, often of the best epoch on the test photos, and with
another backbone than its neighbour's: compare methods by what was measured alike.
"""
_TOLD = """Points: top-1 above `plain` trained alike, in the same time. Training, answer: times those of that `plain`, a
photo. On the mark: share of photos where the place it looks at most lies on the mark. Epochs: passes that the time
sufficed for.
[All methods](comparison.md)."""
_NEEDS = {
    "pixels": "the photos themselves: it crops or changes them in every epoch, so what frozen stages see of them "
    "cannot be computed once and kept, and an epoch takes longer",
    "labels": "one class a photo: `--mixup` and `--cutmix` do not go with it",
    "tree": "coarser ranks of the classes: columns such as `family` and `order` beside `label` in the table of photos",
    "ranks": "photos of which only a coarser rank is known: [an empty `label`](../photos.md#coarser-ranks)",
    "boxes": "boxes of the things: columns `box_x`, `box_y`, `box_w`, `box_h` (pixels) in the table of photos, or "
    "[any number a photo](../photos.md#boxes)",
    "transformer": "a vision transformer with a class token, such as `--backbone vit_small_patch16_224`",
}


def index() -> str:
    """The page with all methods."""
    sets = list(dict.fromkeys(row.set for row in measured()))
    heads = ["method", "year", "idea", "training", "answer", *sets]
    lines = [_FRONT]
    for family in methods.FAMILIES:
        own = [card for card in methods.cards() if card.family == family]
        if not own:
            continue
        lines += [
            f"## {family.capitalize()}\n",
            _line(heads),
            _line(["---"] * 3 + ["---:"] * (len(heads) - 3)),
        ]
        for card in own:
            found = {row.set: row for row in of(card.name)}
            costs = [
                _mean(row.training for row in found.values()),
                _mean(row.answer for row in found.values()),
            ]
            points = [_number(found[name].delta, "+.1f") if name in found else "" for name in sets]
            lines.append(
                _line([f"[`{card.name}`]({card.name}.md)", str(card.year), card.idea, *costs, *points])
            )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def page(card: Card) -> str:
    """The page of one method."""
    lines = [f"# {card.title}", "", "<!-- Made by docs/methods.py from the method itself. -->", ""]
    lines += [f"`--method {card.name}` · {card.year} · {card.family}", "", f"{_sentence(card.idea)}", ""]
    if card.equation:
        lines += ["```text", card.equation, "```", ""]
    if card.when:
        lines += [f"**When to use it.** {_sentence(card.when)}", ""]
    if card.needs:
        lines += ["**What it needs.** " + _sentence("; ".join(_NEEDS[need] for need in card.needs)), ""]
    if card.uses:
        lines += ["**What it makes use of.** " + _sentence("; ".join(_NEEDS[use] for use in card.uses)), ""]
    picture = PICTURES / f"{card.name}.jpg"
    if picture.is_file():
        lines += [f"![What {card.name} looks at](../pictures/methods/{card.name}.jpg)", ""]
        lines += [
            "Rendered look-alikes that it was not trained on; below, where it looks, and the mark framed.",
            "",
        ]
    if card.backbone:
        lines += _settings(card)
    lines += ["## Measured", ""]
    lines += [f"- Published: {card.paper}."] if card.paper else []
    found, alone = of(card.name), _alone(card)
    lines += ["", *_table(found)] if found else [] if alone else ["- Here: not measured yet."]
    lines += alone
    lines += ["", "## Source", "", f"{card.source}. Code: `fieldmark/methods/{card.name}.py`.", ""]
    return "\n".join(lines)


def _settings(card: Card) -> list[str]:
    fields = methods.get(card.name).Options.model_fields
    if not fields:
        return []
    lines = ["## Settings", "", "Given as `--set NAME=VALUE`.", "", _line(["name", "default", "what"])]
    lines.append(_line(["---", "---", "---"]))
    lines += [_line([f"`{n}`", f"`{f.default}`", _sentence(f.description or "")]) for n, f in fields.items()]
    return [*lines, ""]


def _table(found: list[Measured]) -> list[str]:
    heads = [
        "photos",
        "time",
        "seeds",
        "top-1",
        "spread",
        "points to plain",
        "training",
        "answer",
        "on the mark",
        "epochs",
    ]
    lines = [_line(heads), _line(["---"] * 2 + ["---:"] * 8)]
    for row in found:
        numbers = [_number(row.top1, ".3f"), _number(row.spread, ".3f"), _number(row.delta, "+.1f")]
        numbers += [_number(row.training, ".1f"), _number(row.answer, ".1f"), _number(row.mark_hit, ".2f")]
        numbers.append(_number(row.epochs, ".1f"))
        lines.append(_line([row.set, row.budget, str(row.n or ""), *numbers]))
    return [*lines, "", _TOLD]


def _alone(card: Card) -> list[str]:
    """What a benchmark of this method alone found."""
    table, lines = RESULTS / f"{card.name}.csv", list[str]()
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        lines += [
            "",
            f"By `python benchmarks/{card.name}.py`:",
            "",
            _line(["photos", "what", "value", "note"]),
        ]
        lines.append(_line(["---", "---", "---:", "---"]))
        lines += [
            _line([row["set"], row["what"], f"{row['value']} {row['unit']}", row["note"]]) for row in rows
        ]
    if (PICTURES.parent / f"{card.name}.png").is_file():
        lines += ["", f"![{card.name} at work](../pictures/{card.name}.png)"]
    return lines


def _mean(values: object) -> str:
    known = [value for value in values if value is not None]  # type: ignore[attr-defined]
    return f"{sum(known) / len(known):.1f}" if known else ""


def _number(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if not text or text[-1] in ".!?" else f"{text}."


def pages() -> dict[Path, str]:
    """All pages, by their place."""
    return {FOLDER / "index.md": index(), FOLDER / "comparison.md": comparison.text()} | {
        FOLDER / f"{card.name}.md": page(card) for card in methods.cards()
    }


def main() -> int:
    wanted = pages()
    there = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    if "--check" in sys.argv:
        stale = sorted(
            {path.name for path in wanted.keys() | there.keys() if wanted.get(path) != there.get(path)}
        )
        if stale:
            print(f"out of date: {', '.join(stale)} (run: python docs/methods.py)")
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for path in there.keys() - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
