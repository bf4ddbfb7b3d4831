"""The textbook network on sets of small pictures: ``python benchmarks/cnn.py --source mnist=FOLDER``

``fieldmark train SET --method cnn`` as anybody would run it, and its top-1 on the published test photos. ``digits``
comes with scikit-learn, and is trained with no option but the number of epochs; ``mnist`` and ``fashion-mnist``
are trained by their recipes (fieldmark/train/textbook/recipes.py), which were chosen on held-out training photos. Their
four published files are fetched, or read from the folder that ``--source`` names. Photos a second are those of the
training steps alone; ``seconds`` count the whole command, from its start to the model on disk, the test not
included. ``--limit N`` takes the first N photos of a class: a trial. About a minute for digits, and ten for each of
the others on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import common

#: Set -> what ``fieldmark train`` is told, and the least top-1 that is wanted.
SETS: dict[str, tuple[tuple[str, ...], float]] = {
    "digits": (("--epochs", "20"), 0.985),
    "mnist": (("--recipe", "mnist"), 0.99),
    "fashion-mnist": (("--recipe", "fashion-mnist"), 0.91),
}
TOP1, HELD, SECONDS, RATE, READING = (
    "top-1",
    "top-1 of held-out photos",
    "seconds to train",
    "photos a second",
    "seconds before the first step",
)


def photos(name: str, chosen: argparse.Namespace, results: common.Results) -> Path:
    """The folder of a set, written once and kept."""
    sources = dict(item.split("=", 1) for item in chosen.source)
    limit = chosen.limit if name != "digits" else None
    folder = results.work / f"{name}-{limit or 'all'}"
    if not (folder / "metadata.csv").is_file():
        words = ["--with", f"source={sources[name]}"] if name in sources else []
        words += ["--with", f"per_class={limit}"] if limit else []
        common.run(
            [*common.command(), "datasets", name, "--out", folder, *words], results.work, json_line=False
        )
    return folder


def measure(name: str, seed: int, folder: Path, results: common.Results) -> None:
    """Train once, from a cold cache: the rows; top-1 comes last."""
    flags, wanted = SETS[name]
    words = ["--method", "cnn", *flags, "--seed", seed, "--no-report"]
    with common.cold(results.work) as home:
        run = home / "run"
        told = common.fieldmark("train", folder, "--out", run, *words, cache=home / "cache").answer
        notes = json.loads((run / "run.json").read_text(encoding="utf-8"))
        judged = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    own: dict[str, Any] = {"set": name, "seed": seed, "n": told["n_test"]}
    plan = notes["chosen"]["plan"]
    note = f"{told['epochs']:.0f} epochs of {plan['photos']} photos of {plan['phases'][0]['size']} px"
    results.add(SECONDS, told["seconds"], "s", **own, note=note)
    results.add(READING, notes["curve"][0]["seconds"], "s", **own)
    results.add(RATE, told["photos_per_second"], "photos/s", **own)
    results.add(HELD, notes["chosen"]["held_out_top1"], "share", **own)
    low, high = judged["top1_ci95"]
    results.add(
        TOP1,
        told["top1"],
        "share",
        low=low,
        high=high,
        **own,
        wanted=f"value >= {wanted}",
        note=" ".join(flags),
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS), metavar="SET")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="SET=FOLDER",
        help="where the published files of a set lie  [default: they are fetched]",
    )
    chosen = parser.parse_args()
    results = common.Results(__file__, chosen)
    limited = f" --limit {chosen.limit}" if chosen.limit else ""
    for name in chosen.sets:
        results.facts["command"] = f"python benchmarks/cnn.py --sets {name}{limited}"
        for seed in chosen.seeds:
            if results.done(TOP1, name, seed):
                continue
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            measure(name, seed, photos(name, chosen, results), results)


if __name__ == "__main__":
    main()
