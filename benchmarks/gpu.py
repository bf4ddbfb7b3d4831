"""How quick is training on a GPU, and does it wait for photos?  ``python benchmarks/gpu.py --minutes 25``

fieldmark's steps from photos on the disk to new weights (`fieldmark.train.loop`, method plain) beside the same timm
network in a plain loop (peers/gpu_loop.py): same batch, size, autocast and channels last, in one process. Speeds are
measured in turn, round by round, each round from an empty queue of photos; the ratio is taken within a round, and the
first round, in which memory and kernels are found, does not count. Waiting is the share of the time in which the loop
stood at its photos, which the GPU may have filled with steps that it was given before; memory is the most that the
steps held at once, the other's weights taken off. The two differ in more than their feed: fieldmark keeps photos
decoded and batch norms as they came, and averages weights; the plain loop trains batch norms, and reads nothing back.

Jobs are done in the order of their worth until the minutes are over: speeds, accuracy seed by seed, speeds of compiled
steps, the plain loop's accuracy. Each writes its rows at once, and a later call goes on behind the last; one that fails
is told and passed over. About a minute each on a large GPU, three where steps are compiled: ``--kinds compiled --sets
lookalikes`` asks for those first. Networks without weights are measured for speed only. ``--weights resnet50=FILE``:
those of Keras, under timm's names (`gpu_arms.as_keras`); tf_efficientnet_lite2 comes with its package. On a machine
without this repository's history say what is measured by ``--commit``. ``--trial`` runs the same code on any machine,
with small views and random weights.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
import traceback
from argparse import ArgumentTypeError, Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import common
import torch
from gpu_arms import Case, Fieldmark, Setting, Split, plain_loop, source, split

#: Set -> side in pixels. That of photos of look-alikes is a little more.
SIZES = {"lookalikes": 448, "cub100": 224, "grocery_store": 224, "cub10_parts": 300}
BACKBONES, SEEDS = ("resnet50", "tf_efficientnet_lite2"), (0, 1, 2)
#: What is measured, in the order of worth: kind, and the first and last of its seeds.
SPEED, COMPILED, ACCURACY, PLAIN = "speed", "compiled", "accuracy", "plain_accuracy"
ORDER = ((SPEED, 0, 1), (ACCURACY, 0, 1), (ACCURACY, 1, None), (COMPILED, 0, 1), (PLAIN, 0, 1))
#: Rounds, the first of which does not count, steps of each that do not, and its seconds.
ROUNDS, EARLY, SECONDS = 4, 12, 6.0
#: What the issue asks for.
FASTER, WAITING = "ratio >= 1.3", "value <= 0.05"


def allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def one_round(arm: Any, seconds: float) -> tuple[float, float, float]:
    """From an empty queue: photos a second, share of the time spent waiting for photos, the most memory in bytes."""
    steps = arm.steps()
    for _ in range(EARLY):
        next(steps)
    synchronise()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began, before, photos = time.perf_counter(), arm.waited, 0
    while time.perf_counter() - began < seconds:
        photos += next(steps)
    synchronise()
    passed = time.perf_counter() - began
    steps.close()
    most = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return photos / passed, (arm.waited - before) / passed, most


def speeds(case: Case, photos: Split, setting: Setting, compiled: bool, results: common.Results) -> None:
    """The rows of one network: ours and the plain loop's, in turn."""
    held, base, arms, notes = dict[str, int](), allocated(), list[Any](), list[str]()
    rounds: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    seconds = 0.2 if setting.trial else SECONDS
    for make in (plain_loop, Fieldmark):
        before = allocated()
        arms.append(arm := make(case, photos, setting))  # type: ignore[operator]
        if compiled and (why := arm.compile()):
            notes.append(f"; {arm.name}: {why}")
        one_round(arm, seconds / 2)
        held[arm.name] = allocated() - before
    for number in range(ROUNDS - 1):
        for arm in arms if number % 2 else reversed(arms):
            speed, waited, most = one_round(arm, seconds)
            others = base + sum(held.values()) - held[arm.name]
            rounds[arm.name].append((speed, waited, most - others))
    name, more = label(case, COMPILED if compiled else SPEED), {"set": case.set, "seed": case.seed}
    ours, theirs = (list(zip(*rounds[arm], strict=True)) for arm in ("fieldmark", "plain loop"))
    ratios = [one / other for one, other in zip(ours[0], theirs[0], strict=True)]
    bf16 = "bfloat16" if setting.device.type == "cuda" else "single precision"
    note = f"batch {arms[0].batch}, {bf16}, channels last, {setting.workers} workers; least and most of the rounds"
    note += "".join(notes)
    for who, found, ratio, faster, waiting in (
        ("plain loop, ", theirs, None, None, None),
        ("", ours, statistics.median(ratios), FASTER, WAITING),
    ):
        told = {**more, "n": ROUNDS - 1, "note": note}
        if setting.device.type == "cuda":
            results.add(f"{name}, {who}memory", max(found[2]) / 2**30, "GiB", **told)
        share = statistics.median(found[1])
        results.add(f"{name}, {who}waiting for photos", share, "share", **told, wanted=waiting)
        ends = {"low": min(found[0]), "high": max(found[0]), "ratio": ratio, "wanted": faster}
        results.add(f"{name}, {who}photos a second", statistics.median(found[0]), "photos/s", **told, **ends)


def accuracy(
    case: Case, photos: Split, setting: Setting, make: Any, what: str, results: common.Results
) -> None:
    """The row of one training."""
    from fieldmark.runtime.metrics import wilson

    arm, began = make(case, photos, setting), time.perf_counter()
    arm.train(setting.epochs)
    synchronise()
    seconds, right, n = time.perf_counter() - began, arm.right(photos.test), len(photos.test)
    low, high = wilson(right, n)
    note = f"{setting.epochs} epochs, batch {setting.batch}, {seconds:.0f} s of training; 95% interval"
    told = {"set": case.set, "seed": case.seed, "low": low, "high": high, "n": n, "note": note}
    results.add(what, right / n, "share", **told)


def label(case: Case, kind: str) -> str:
    name = f"{case.backbone}, {case.size} px"
    return f"{name}, compiled" if kind == COMPILED else name


def last_row(case: Case, kind: str) -> str:
    """What the row is called that a job writes last."""
    ends = {ACCURACY: "top-1", PLAIN: "plain loop, top-1"}
    return f"{label(case, kind)}, {ends.get(kind, 'photos a second')}"


def do(case: Case, kind: str, setting: Setting, results: common.Results) -> None:
    photos = split(case.set, setting)
    if kind in (SPEED, COMPILED):
        speeds(case, photos, setting, kind == COMPILED, results)
    else:
        make = Fieldmark if kind == ACCURACY else plain_loop
        accuracy(case, photos, setting, make, last_row(case, kind), results)


def clear() -> None:
    """Nothing of a job is left in memory."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pair(text: str) -> tuple[str, Path]:
    name, sign, file = text.partition("=")
    if not sign or not Path(file).is_file():
        raise ArgumentTypeError(f"{text!r} is not NAME=FILE with a file that is there")
    return name, Path(file)


def arguments() -> Namespace:
    from fieldmark.runtime.machine import cores

    parser = common.parser(__doc__)
    kinds = [SPEED, COMPILED, ACCURACY, PLAIN]
    parser.add_argument("--sets", nargs="+", default=list(SIZES), choices=SIZES, metavar="SET")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="SEED")
    parser.add_argument("--kinds", nargs="+", default=kinds, choices=kinds, metavar="KIND")
    parser.add_argument("--minutes", type=float, default=25.0, help="no job is begun that would end later")
    parser.add_argument("--epochs", type=int, default=12, help="of the trainings for accuracy")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=cores(), help="that read photos  [default: all cores]")
    parser.add_argument(
        "--weights", nargs="+", type=pair, default=[], metavar="NAME=FILE", help="safetensors"
    )
    parser.add_argument("--commit", help="what is measured, where git does not know")
    return parser.parse_args()


def main() -> None:
    began, chosen = time.perf_counter(), arguments()
    if not torch.cuda.is_available() and not chosen.trial:
        sys.exit("no CUDA: nothing is measured (--trial runs the same code on this machine)")
    torch.backends.cudnn.benchmark = True  # as fine-tuning does
    results = common.Results(__file__, chosen, also=["gpu_arms", "peers/gpu_loop"])
    results.facts["commit"] = chosen.commit or results.facts["commit"]
    if torch.cuda.is_available():
        results.facts["machine"] += f"; {torch.cuda.get_device_name(0)}"
    setting = Setting(
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        *(chosen.batch, chosen.workers, chosen.epochs, dict(chosen.weights), results.work, chosen.trial),
    )
    known = [name for name in chosen.backbones if chosen.trial or source(name, setting).file]
    for name in sorted({*chosen.backbones} - {*known}):
        print(f"{name}: no weights here, speed only (--weights {name}=FILE)", file=sys.stderr)
    longest, failed = defaultdict[str, float](float), list[str]()
    for kind, first, end in ORDER:
        jobs = [
            Case(name, min(SIZES[name], 64) if chosen.trial else SIZES[name], backbone, seed)
            for seed in chosen.seeds[first:end]
            for name in chosen.sets
            for backbone in chosen.backbones
            if kind in chosen.kinds and (backbone in known or kind in (SPEED, COMPILED))
        ]
        for case in jobs:
            results.facts["command"] = (
                f"python benchmarks/gpu.py --kinds {kind} --sets {case.set} --backbones {case.backbone} "
                f"--seeds {case.seed} --epochs {setting.epochs} --batch {setting.batch}"
            )
            if results.done(last_row(case, kind), case.set, case.seed):
                continue
            started = time.perf_counter()
            if (started - began + longest[kind]) / 60 > chosen.minutes:
                print(f"the {chosen.minutes:g} minutes are over: next is {kind}, {case}", file=sys.stderr)
                sys.exit(bool(failed))
            print(f"{case.set}: {last_row(case, kind)}, seed {case.seed}", file=sys.stderr, flush=True)
            try:
                do(case, kind, setting, results)
            except Exception:  # the others are worth measuring all the same
                traceback.print_exc()
                failed.append(f"{kind}, {case}")
            clear()
            longest[kind] = max(longest[kind], time.perf_counter() - started)
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
