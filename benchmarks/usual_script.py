"""Against the usual script: how many photos a second, how accurate?  ``python benchmarks/usual_script.py``

The peer is usual_peer.py: timm in eager mode on JPEG files, pooled features, scikit-learn's logistic regression; the
same EfficientNet-Lite0 weights, photos and cores. Photos a second are training photos over seconds from the start of
the process to the saved model, for both; fieldmark starts with an empty cache. The two run in turn, round by round;
medians. The peer's C is chosen by five folds in the first round and given in the later ones; the ratio is judged
without the time of that search, which favours the peer. ``fieldmark --size 224`` sees what the peer sees.
About 15 minutes on two cores.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import common
import usual_peer

from fieldmark.runtime.machine import cores
from fieldmark.runtime.metrics import wilson

OURS, SMALL, PEER = "fieldmark", "fieldmark --size 224", "timm eager + scikit-learn"


def fieldmark(source: Path, flags: list[str], results: common.Results) -> dict[str, Any]:
    """Train from an empty cache: photos a second, of looking at photos alone, and the accuracy."""
    with common.cold(results.work) as folder:
        cache, run = folder / "cache", folder / "run"
        answer = common.fieldmark("train", source, "--out", run, "--no-report", *flags, cache=cache).answer
        details = json.loads((run / "run.json").read_text(encoding="utf-8"))
    n = answer["n_train"]
    return {
        "n": n,
        "rate": n / answer["seconds"],
        "looking": n / details["seconds"]["looking"],
        "right": round(answer["top1"] * answer["n_test"]),
        "n_test": answer["n_test"],
        "note": " and ".join(map(str, details["chosen"]["scales"])) + " px",
    }


def peer(table: Path, weights: Path, c: float | None, results: common.Results) -> dict[str, Any]:
    """The same of the usual script."""
    words = [usual_peer.__file__, table, "--weights", weights, "--out", results.work / "peer.npz"]
    words += ["--workers", cores(), *(["--c", c] if c else [])]
    began = time.time()
    told = common.run([sys.executable, *words], results.work / "cache").answer
    n, searching = told["n_train"], told["searched"] - told["looked"]
    return {
        "n": n,
        "rate": n / (told["saved"] - began - searching),
        "with search": n / (told["saved"] - began),
        "looking": n / (told["looked"] - told["looking"]),
        "right": told["right"],
        "n_test": told["n_test"],
        "note": f"224 px, C = {told['c']}",
        "c": told["c"],
    }


def write(set: str, found: dict[str, list[dict[str, Any]]], results: common.Results) -> None:
    """The rows. The ratio and the difference in accuracy are to the peer, in the same run."""
    for name, rounds in found.items():
        last, own = rounds[-1], {"set": set, "n": rounds[0]["n"]}
        for what, key in (("photos a second", "rate"), ("looking at photos only", "looking")):
            values = [one[key] for one in rounds]
            ratio = None
            if name != PEER:
                pairs = zip(values, (one[key] for one in found[PEER]), strict=True)
                ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            results.add(
                *(f"{name}, {what}", statistics.median(values), "photos/s"),
                **own,
                low=min(values),
                high=max(values),
                ratio=ratio,
                wanted="ratio >= 6" if name == OURS and key == "rate" else None,
                note=f"{last['note']}; {len(rounds)} rounds",
            )
        low, high = wilson(last["right"], last["n_test"])
        top1 = last["right"] / last["n_test"]
        more = {"set": set, "n": last["n_test"]}
        results.add(f"{name}, top-1", top1, "share", **more, low=low, high=high, note="95% interval")
        if name != PEER:
            beside = found[PEER][-1]
            difference = 100 * (top1 - beside["right"] / beside["n_test"])
            wanted = "value >= 4" if name == OURS and set == "grocery_store" else None
            results.add(f"{name}, top-1 above the peer's", difference, "points", **more, wanted=wanted)
    first = found[PEER][0]
    results.add(f"{PEER}, with the search for C", first["with search"], "photos/s", set=set, n=first["n"])


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--set", default="grocery_store")
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    results = common.Results(__file__, chosen, also=["usual_peer"])
    if results.done(f"{OURS}, photos a second", chosen.set):
        return
    common.warm_up(results)
    os.environ["FIELDMARK_CACHE"] = str(results.work / "cache")
    from fieldmark.nn.weights import resolve

    weights = resolve("tf_efficientnet_lite0").file  # the peer gets them converted, off its clock
    assert weights is not None
    source = common.source(chosen.set, chosen.limit, results.work)
    photos = common.catalog(chosen.set, chosen.limit)
    table = common.table(photos, results.work / f"{chosen.set}-peer.csv")
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number in range(chosen.rounds):
        known = found[PEER][0]["c"] if number else None
        found[PEER].append(peer(table, weights, known, results))
        found[OURS].append(fieldmark(source, [], results))
        found[SMALL].append(fieldmark(source, ["--size", "224"], results))
        print(f"round {number + 1}: { ({name: of[-1] for name, of in found.items()}) }", file=sys.stderr)
    write(chosen.set, found, results)


if __name__ == "__main__":
    main()
