"""What does a time budget buy, and what do others make of it?  ``python benchmarks/finetune.py``

One row a number, for each method, set, budget in minutes and seed: ``fieldmark train SET --budget Nm`` with an empty
cache, or a peer from benchmarks/peers/, each as a process on the same photos (train and val learned from, test judged
once, off the clock), with the same EfficientNet-Lite0 weights. Seconds are from the start of the process to the model
on disk; photos a second are photos through the optimiser, counted once a pass, over those seconds, and "of training"
over those of its training alone, from the first map that is cached to the last step. ``fastai`` and
``hf_trainer`` need environments of their own: their scripts say how to make them; FASTAI_PYTHON and HF_PYTHON name
their interpreters (default: in fastai-venv and hf-venv of the temporary folder).

A row is found again by method, set, budget, seed and the commit of what it measures, so that a stopped run goes on
and a peer is not measured anew when fieldmark changes. ``--compare`` only judges the rows that are there, as every run
does at its end. ``--plot`` only draws them, accuracy against time, and writes the table of the docs: ``uv run --with
matplotlib python benchmarks/finetune.py --plot``. A cell takes its budget and about a minute: budgets of 2, 10 and 30
minutes on two sets about 6 hours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from peers import picture

OURS = picture.OURS
#: Script of a peer, environment variable that names its Python, where that is by default, what it imports.
PEERS = {
    "plain_loop": ("plain_loop.py", "", "", "timm"),
    "fastai": ("fastai_peer.py", "FASTAI_PYTHON", "fastai-venv", "timm, fastai.vision.all"),
    "hf_trainer": ("hf_trainer.py", "HF_PYTHON", "hf-venv", "timm, transformers.trainer"),
}
SETS, BUDGETS = ("grocery_store", "cub100"), (2.0, 10.0, 30.0)
#: Top-1 to reach in so many minutes (issue 3).
WANTED = {("grocery_store", 10.0): "value >= 0.86", ("cub100", 10.0): "value >= 0.93"}
#: What the wall time may be of the budget.
OVERSHOT = 1.05
#: In so many minutes at least so many points above the plain loop on some set, and below it on none.
AT, ABOVE = 10.0, 2
#: How many times a peer's photos a second, where the note of our row has this word for how it was trained.
TIMES = {"fastai": ("cached", 8), "plain_loop": ("end-to-end", 1.2)}
OF_TRAINING = "photos a second of training"
#: Rates and counts that are told beside seconds and top-1.
TOLD = {
    "photos_per_second": ("photos a second", "photos/s"),
    "photos_per_second_training": (OF_TRAINING, "photos/s"),
    "epochs": ("epochs", "epochs"),
}


def label(method: str, minutes: float) -> str:
    return f"{method}, {minutes:g} min"


def python(method: str) -> Path:
    """The interpreter of a peer's environment. Ends the script where there is none."""
    script, variable, folder, _ = PEERS[method]
    if not variable:
        return Path(sys.executable)
    named = os.environ.get(variable)
    found = Path(named) if named else Path(tempfile.gettempdir()) / folder / "bin" / "python"
    if not found.is_file():
        sys.exit(
            f"no Python for {method} at {found}: benchmarks/peers/{script} says how to make its environment"
        )
    return found


def commit_of(*paths: str) -> str:
    """The last commit that changed these files, with + where they were changed since."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words, "--", *paths], cwd=common.ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    known = git("log", "-1", "--format=%h")
    return known + ("+" if git("status", "--porcelain") else "") if known else "unknown+"


def facts(cell: picture.Cell, limit: int | None) -> dict[str, str]:
    """The command that measures this cell alone, and the commit of what it measures."""
    words = f"--methods {cell.method} --sets {cell.set} --budgets {cell.minutes:g} --seeds {cell.seed}"
    words += f" --limit {limit}" if limit else ""
    command = f"python benchmarks/finetune.py {words}"
    if cell.method == OURS:
        return {"command": command, "commit": common.commit("benchmarks/finetune.py")}
    paths = [f"benchmarks/peers/{name}" for name in ("shared.py", PEERS[cell.method][0])]
    return {"command": command, "commit": commit_of(*paths)}


def weights(work: Path) -> Path:
    """The embedded weights as safetensors, for the peers; converted off their clock."""
    os.environ["FIELDMARK_CACHE"] = str(work / "cache")
    from fieldmark.nn.weights import DEFAULT_BACKBONE, resolve

    file = resolve(DEFAULT_BACKBONE).file
    assert file is not None
    return file


def peer(cell: picture.Cell, results: common.Results, limit: int | None) -> dict[str, Any]:
    """Run a peer: its last line, and a note."""
    words: list[Any] = [python(cell.method), common.HERE / "peers" / PEERS[cell.method][0]]
    words += [common.photos(cell.set), "--weights", weights(results.work), "--seed", cell.seed]
    words += ["--seconds", 60 * cell.minutes, *(["--limit", limit] if limit else [])]
    with common.cold(results.work) as folder:
        words += ["--out", folder / "model.safetensors", "--started", time.time()]
        told = common.run(words, folder / "cache").answer
    note = f"{told['settings']}; {told['versions']}"
    if told["measuring_seconds"]:
        note += f"; {told['measuring_seconds']:.0f} s for measuring its speed are not counted"
    return {**told, "note": note}


def fieldmark(cell: picture.Cell, results: common.Results, limit: int | None) -> dict[str, Any]:
    """Run fieldmark: what it tells of the same numbers, and a note."""
    source = common.source(cell.set, limit, results.work)
    flags = ["--budget", f"{cell.minutes:g}m", "--seed", cell.seed, "--no-report"]
    with common.cold(results.work) as folder:
        run, cache = folder / "run", folder / "cache"
        told = common.fieldmark("train", source, "--out", run, *flags, cache=cache).answer
        details = json.loads((run / "run.json").read_text(encoding="utf-8"))
    chosen = details["chosen"]
    phases = (chosen.get("plan") or {}).get("phases", [])
    how = " then ".join("cached stages" if phase["views"] else "end-to-end" for phase in phases)
    held = [chosen.get(f"held_out_{what}") for what in ("top1", "nll", "top1_instant", "nll_instant")]
    told_of = "{:.1%} of held-out photos (log loss {:.3f}), instant {:.1%} ({:.3f})"
    known = None if None in held else told_of.format(*held)
    note = "; ".join(str(word) for word in (told.get("mode"), how, known) if word)
    if told.get("photos_per_second"):  # what train tells is the speed of its training alone
        told["photos_per_second_training"] = told["photos_per_second"]
        seen = told["epochs"] * (told["n_train"] - chosen["held_out"])
        told["photos_per_second"] = seen / told["seconds"]
    return {**told, "right": round(told["top1"] * told["n_test"]), "note": note}


def measure(cell: picture.Cell, results: common.Results, limit: int | None) -> None:
    """All rows of one cell; top-1 comes last."""
    from fieldmark.runtime.metrics import wilson

    results.state = common.quiet()
    told = (fieldmark if cell.method == OURS else peer)(cell, results, limit)
    name, own = label(cell.method, cell.minutes), {"set": cell.set, "seed": cell.seed}
    many = {**own, "n": told["n_train"], "note": told["note"]}
    within = f"value <= {60 * cell.minutes * OVERSHOT:g}" if cell.method == OURS else None
    results.add(f"{name}, seconds", told["seconds"], "s", **many, wanted=within)
    for key, (what, unit) in TOLD.items():
        if told.get(key) is not None:
            results.add(f"{name}, {what}", float(told[key]), unit, **many)
    low, high = wilson(told["right"], told["n_test"])
    wanted = WANTED.get((cell.set, cell.minutes)) if cell.method == OURS else None
    more = {**own, "n": told["n_test"], "low": low, "high": high, "wanted": wanted}
    results.add(f"{name}, top-1", told["right"] / told["n_test"], "share", **more, note="95% interval")


def warm_up(methods: list[str], results: common.Results) -> None:
    """Nothing is counted yet: Python writes its bytecode, programs come into memory."""
    for method in methods:
        if method == OURS:
            common.warm_up(results)
        else:
            common.run([python(method), "-c", f"import {PEERS[method][3]}"], results.work / "cache", False)


def nearest(found: dict[picture.Cell, picture.Measured], wanted: picture.Cell) -> picture.Measured | None:
    """A cell, or that of the budget nearest to it: a peer's speed is the same at any."""
    same = [cell for cell in found if cell._replace(minutes=wanted.minutes) == wanted]
    return found[min(same, key=lambda cell: abs(cell.minutes - wanted.minutes))] if same else None


def compare(results: common.Results) -> None:
    """Our cells beside the peers' of the same set, budget and seed, on this machine."""
    mine = [row for row in results.rows() if row["machine"] == results.facts["machine"]]
    found = picture.cells(mine)
    results.facts["command"] = "python benchmarks/finetune.py --compare"
    results.facts["commit"] = common.commit("benchmarks/finetune.py")
    above: dict[str, list[float]] = {}
    for cell, told in found.items():
        others = {
            name: found[cell._replace(method=name)] for name in PEERS if cell._replace(method=name) in found
        }
        if cell.method != OURS:
            continue
        top1, name = float(told["top-1"]["value"]), label(OURS, cell.minutes)
        own: dict[str, Any] = {"set": cell.set, "seed": cell.seed}
        points = {other: 100 * (top1 - float(one["top-1"]["value"])) for other, one in others.items()}
        if points:
            best = min(points, key=lambda other: points[other])
            note = f"{best} is the best of {', '.join(points)}"
            what = f"{name}, above the best peer"
            results.add(what, points[best], "points", **own, wanted="value >= 0", note=note)
        if cell.minutes == AT and "plain_loop" in points:
            above.setdefault(cell.set, []).append(points["plain_loop"])
        for other in PEERS:
            one = nearest(found, cell._replace(method=other))
            rates = [
                float(each[OF_TRAINING]["value"]) for each in (told, one) if each and OF_TRAINING in each
            ]
            if len(rates) == 2:
                word, least = TIMES.get(other, ("", 0))
                wanted = f"value >= {least}" if word and word in told[OF_TRAINING]["note"] else None
                what = f"{name}, times the photos a second of {other}"
                results.add(what, rates[0] / rates[1], "times", **own, wanted=wanted)
    if above:
        means = {name: statistics.mean(over_seeds) for name, over_seeds in above.items()}
        best = max(means, key=lambda name: means[name])
        what = f"{label(OURS, AT)}, most above plain_loop on any set"
        results.add(what, means[best], "points", wanted=f"value >= {ABOVE}", note=best)


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__)
    methods = [OURS, *PEERS]
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods, metavar="METHOD")
    parser.add_argument("--sets", nargs="+", default=list(SETS), metavar="SET")
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS), metavar="MINUTES")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    parser.add_argument("--compare", action="store_true", help="judge the rows that are there")
    parser.add_argument("--plot", action="store_true", help="draw the rows that are there; needs matplotlib")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    if chosen.plot:
        trial = chosen.limit or chosen.trial
        work = chosen.work or Path(tempfile.gettempdir()) / "fieldmark-benchmarks"
        rows = (work if trial else common.HERE / "results") / "finetune.csv"
        picture.draw(rows, work / picture.PICTURE.name if trial else picture.PICTURE)
        picture.tabulate(rows)
        if not trial:
            picture.show()
        return
    results = common.Results(__file__, chosen)
    wanted = [
        picture.Cell(method, minutes, name, str(seed))
        for minutes in chosen.budgets
        for name in chosen.sets
        for seed in chosen.seeds
        for method in chosen.methods
    ]
    left = []
    for cell in [] if chosen.compare else wanted:
        results.facts |= facts(cell, chosen.limit)
        if not results.done(f"{label(cell.method, cell.minutes)}, top-1", cell.set, cell.seed):
            left.append(cell)
    warm_up(list(dict.fromkeys(cell.method for cell in left)), results)
    for cell in left:
        print(
            f"{cell.set}: {label(cell.method, cell.minutes)}, seed {cell.seed}", file=sys.stderr, flush=True
        )
        results.facts |= facts(cell, chosen.limit)
        measure(cell, results, chosen.limit)
    compare(results)


if __name__ == "__main__":
    main()
