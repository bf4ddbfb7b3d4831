"""How long until the first answer?  ``python benchmarks/cold_start.py``

Whole-process wall times, from nothing to the prompt: ``fieldmark predict MODEL one.jpg`` and ``fieldmark --help``, and
Python alone for comparison; then the same where Python has no bytecode of its modules and may not keep any (a fresh
install that is read-only, or PYTHONDONTWRITEBYTECODE). In turn, after one round that is not counted (it brings files
into memory and lets Python write its bytecode); medians. A minute on two cores.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import common

WITHOUT = ", without bytecode"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--model", type=Path, help="a model folder  [default: trained on grocery_store]")
    parser.add_argument("--runs", type=int, default=7)
    chosen = parser.parse_args()
    results = common.Results(__file__, chosen)
    if results.done("fieldmark predict, one photo"):
        return
    model = chosen.model or common.trained(results, "grocery_store", chosen.limit) / "model"
    photo = common.catalog("grocery_store", chosen.limit).of_split("test").paths[0]
    tool = common.command()
    cases: dict[str, tuple[list[str], str | None]] = {
        "fieldmark predict, one photo": ([*tool, "predict", str(model), photo], "value <= 1.5"),
        "fieldmark --help": ([*tool, "--help"], "value <= 0.4"),
        "python -c pass": ([sys.executable, "-c", "pass"], None),
    }
    cases |= {f"{what}{WITHOUT}": (words, None) for what, (words, _wanted) in cases.items()}
    seconds: dict[str, list[float]] = {what: [] for what in cases}
    for _ in range(chosen.runs + 1):
        for what, (words, _wanted) in cases.items():
            kept = not what.endswith(WITHOUT)
            ran = common.run(words, results.work / "cache", json_line=False, bytecode=kept)
            seconds[what].append(ran.seconds)
    for what, (_words, wanted) in cases.items():
        counted = seconds[what][1:]
        low, high, middle = min(counted), max(counted), statistics.median(counted)
        note = f"median of {len(counted)}; first {seconds[what][0]:.2f} s"
        results.add(what, middle, "s", low=low, high=high, wanted=wanted, n=len(counted), note=note)


if __name__ == "__main__":
    main()
