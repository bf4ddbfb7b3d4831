"""Arrange what was measured as the tables that the docs show: ``python benchmarks/summary.py [--results FOLDER]``

The benchmarks write one number a row. This reads their rows and writes, beside them: summary.csv (every number that
something was wanted of), glance.csv (the README's few), train.csv, peers.csv, predict.csv, start.csv, choices.csv,
search.csv. Nothing is measured here. Then ``python benchmarks/tables.py`` puts the tables into the pages.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterable
from pathlib import Path

Row = dict[str, str]
HERE = Path(__file__).resolve().parent
#: The results that something is wanted of, in the order of the summary.
JUDGED = (
    "instant_accuracy",
    "usual_script",
    "predict_speed",
    "cold_start",
    "predict_memory",
    "add_class",
    "finetune",
)
#: Column titles of train.csv, and where their numbers come from.
TRAIN = {
    "training photos": ("train, cold cache", "n"),
    "seconds": ("train, cold cache", "value"),
    "with judging and report": ("whole command, with evaluation and report", "value"),
    "times the bare graph": ("train, cold cache", "ratio"),
    "seconds, again": ("train again, warm cache", "value"),
    "test photos": ("top-1", "n"),
    "top-1": ("top-1", "value"),
    "from": ("top-1", "low"),
    "to": ("top-1", "high"),
    "macro F1": ("macro F1", "value"),
    "ECE": ("ECE", "value"),
}
#: With several seeds the range is that of their top-1, not an interval.
SEVERAL = {"from": ("top-1", "value"), "to": ("top-1", "value")}
_OF = {"from": min, "to": max}


def read(path: Path) -> list[Row]:
    """Rows of a result; none where it was not measured."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def of_one_machine(rows: list[Row]) -> list[Row]:
    """Those of the machine with the most rows."""
    machines = [row["machine"] for row in rows]
    return [row for row in rows if row["machine"] == max(machines, key=machines.count)]


def write(path: Path, rows: list[Row]) -> None:
    """A table; nothing where there are no rows. A cell that was not measured stays empty."""
    if not rows:
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    print(f"{path.name}: {len(rows)} rows")


def summary(results: Path) -> list[Row]:
    """What was wanted, what was measured. Seeds on their own are left out where there is a row for all."""
    answer = []
    for name in JUDGED:
        rows = [row for row in read(results / f"{name}.csv") if row["wanted"]]
        pooled = {row["set"] for row in rows if row["seed"] == "all"}
        for row in rows:
            if row["seed"] == "all" or row["set"] not in pooled:
                what = f"{row['set']}: {row['what']}" if row["set"] else row["what"]
                wanted = "; ".join(_wanted(part, row) for part in row["wanted"].split(","))
                answer.append(
                    {"what": what, "measured": _measured(row), "wanted": wanted, "holds": row["holds"]}
                )
    return answer


def _measured(row: Row) -> str:
    said = [_shown(row["value"], row["unit"])]
    said += [
        f"{name} {_shown(row[name], _unit(name, row))}" for name in ("low", "ratio") if name in row["wanted"]
    ]
    return "; ".join(said)


def _wanted(condition: str, row: Row) -> str:
    name, sign, bound = condition.split()
    bound = f"{'at most' if sign == '<=' else 'at least'} {_shown(bound, _unit(name, row))}"
    return bound if name == "value" else f"{name} {bound}"


def _unit(name: str, row: Row) -> str:
    return "" if name == "ratio" else row["unit"]


def _shown(number: str, unit: str) -> str:
    return f"{float(number):.1%}" if unit == "share" else f"{float(number):.4g} {unit}".strip()


def train(results: Path) -> list[Row]:
    """A row a set; the mean where a set has several seeds."""
    rows = read(results / "instant_accuracy.csv")
    answer = []
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name and row["seed"] != "all"]
        seeds = len({row["seed"] for row in own})
        line = {"set": name if seeds == 1 else f"{name}, mean of {seeds} seeds"}
        for title, (what, column) in (TRAIN | (SEVERAL if seeds > 1 else {})).items():
            numbers = [float(row[column]) for row in own if row["what"] == what and row[column]]
            line[title] = f"{_OF.get(title, statistics.mean)(numbers):.4g}" if numbers else ""
        answer.append(line)
    return answer


#: Column titles of glance.csv for rows of finetune.csv.
GLANCE = {
    "10 minutes": "fieldmark, 10 min, top-1",
    "30 minutes": "fieldmark, 30 min, top-1",
    "best peer in 10 minutes": (
        "plain_loop, 10 min, top-1",
        "fastai, 10 min, top-1",
        "hf_trainer, 10 min, top-1",
    ),
}


def glance(results: Path) -> list[Row]:
    """A row a set: the top-1 of the instant model and its seconds, and of ten minutes, ours and the best peer's."""
    tuned: dict[tuple[str, str], list[float]] = {}
    for row in of_one_machine(read(results / "finetune.csv")):
        tuned.setdefault((row["set"], row["what"]), []).append(float(row["value"]))
    answer = []
    for row in train(results):
        name = row["set"].partition(",")[0]
        line = {"photos": name, "to learn from": row["training photos"]}
        line |= {"instant": f"{float(row['top-1']):.1%}", "in seconds": f"{float(row['seconds']):.0f}"}
        for title, whats in GLANCE.items():
            found = [tuned.get((name, what)) for what in ([whats] if isinstance(whats, str) else whats)]
            means = [statistics.mean(values) for values in found if values]
            line[title] = f"{max(means):.1%}" if means else ""
        answer.append(line)
    return answer


def wide(rows: Iterable[Row], subject: str, ratio_of: str = "") -> list[Row]:
    """Rows whose ``what`` reads "SUBJECT, MEASURE" as one row a subject and set, one column a measure.

    ratio_of: a measure whose ratio gets a column of its own.
    """
    answer: dict[tuple[str, str], Row] = {}
    for row in rows:
        name, _, measure = row["what"].rpartition(", ")
        line = answer.setdefault((row["set"], name), {"set": row["set"], subject: name})
        line[measure] = row["value"]
        if measure == ratio_of:
            line["ratio"] = row["ratio"]
        if row["spread"] and measure == "difference":
            line["standard error"] = row["spread"]
    return list(answer.values())


def predict(results: Path) -> list[Row]:
    """A row for small photos and one for large ones, in photos a second."""
    answer: dict[str, Row] = {}
    for row in read(results / "predict_speed.csv"):
        line = answer.setdefault(row["set"], {"photos": row["set"]})
        line[row["what"]] = row["value"]
        if row["ratio"]:
            line["ratio"] = row["ratio"]
    return list(answer.values())


def start(results: Path) -> list[Row]:
    """Whole processes, in seconds."""
    rows = read(results / "cold_start.csv")
    return [
        {"command": row["what"], "seconds": row["value"], "from": row["low"], "to": row["high"]}
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    results = parser.parse_args().results
    write(results / "summary.csv", summary(results))
    write(results / "glance.csv", glance(results))
    write(results / "train.csv", train(results))
    peers = wide(read(results / "usual_script.csv"), "script", ratio_of="photos a second")
    write(results / "peers.csv", peers)
    write(results / "predict.csv", predict(results))
    write(results / "start.csv", start(results))
    write(results / "choices.csv", wide(read(results / "instant_choices.csv"), "choice"))
    write(results / "search.csv", wide(read(results / "retrieval.csv"), "embedding"))


if __name__ == "__main__":
    main()
