"""Does ``fieldmark predict`` need more memory the longer it runs?  ``python benchmarks/predict_memory.py``

A folder of 100,000 links to real photos, predicted by ``fieldmark predict`` as a process; its resident memory is noted
at every 1,000th answer. Growth counts from photo 10,000 (a tenth, where fewer are asked for) to the end, and to the
highest note after it. The model is one of 10 classes at 96 px, so that it takes minutes instead of half an hour.
About 5 minutes on two cores.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import common
import probe

MB = 1e6
#: Links in one folder.
PER_FOLDER = 1000


def links(paths: Sequence[str], folder: Path, count: int) -> Path:
    """``count`` links to photos, in folders of a thousand; copies where links are not allowed."""
    for number, path in enumerate(islice(cycle(paths), count)):
        place = folder / f"{number // PER_FOLDER:04d}"
        place.mkdir(parents=True, exist_ok=True)
        target = place / f"{number:06d}{Path(path).suffix}"
        try:
            target.symlink_to(Path(path).resolve())
        except OSError:
            shutil.copyfile(path, target)
    return folder


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--model", type=Path, help="a model folder  [default: 10 classes of grocery_store]")
    parser.add_argument("--size", type=int, default=96, help="of that model, in pixels  [default: 96]")
    parser.add_argument("--photos", type=int, default=100_000)
    chosen = parser.parse_args()
    results = common.Results(__file__, chosen, also=["probe"])
    what = f"growth of memory from photo {chosen.photos // 10}"
    if results.done(what):
        return
    model = chosen.model
    if model is None:
        model = (
            common.trained(results, "grocery_store", chosen.limit or 10, "--size", str(chosen.size)) / "model"
        )
    every = max(1, chosen.photos // 100)
    with common.cold(results.work) as folder:
        photos = links(common.catalog("grocery_store").paths, folder / "photos", chosen.photos)
        log, table = folder / "log", folder / "predictions.csv"
        words = ["predict", model, photos, "--out", table, "--quiet"]
        ran = common.run(
            [sys.executable, probe.__file__, log, every, *words], folder / "cache", json_line=False
        )
        notes = probe.read(log)
    if notes[-1].answers != chosen.photos:
        sys.exit(f"{notes[-1].answers} answers for {chosen.photos} photos")
    later = [note for note in notes if note.answers >= chosen.photos // 10]
    before, last, most = later[0].memory, later[-1].memory, max(note.memory for note in later)
    given = "a model of one's own" if chosen.model else f"a model at {chosen.size} px"
    more = {"n": chosen.photos, "note": given}
    results.add(f"memory at photo {later[0].answers}", before / MB, "MB", **more)
    results.add("memory at the end", last / MB, "MB", **more)
    results.add("predict, whole process", chosen.photos / ran.seconds, "photos/s", **more)
    results.add("highest growth of memory", (most - before) / MB, "MB", wanted="value <= 50", **more)
    results.add(what, (last - before) / MB, "MB", wanted="value <= 50", **more)


if __name__ == "__main__":
    main()
