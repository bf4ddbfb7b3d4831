"""Does ``fieldmark predict`` use what the machine gives?  ``python benchmarks/predict_speed.py``

Two costs a photo are measured alone, each on all cores: the bare compiled graph fed with ready tensors, and reading,
decoding and preprocessing. The machine allows one over their sum. ``fieldmark predict FOLDER`` runs as a process, on
small photos and on 12-megapixel ones (real photos enlarged, JPEG quality 90); its steady state counts from answer
``SKIP`` to the last, the whole process from its start to its end. The three are measured in turn, round by round;
the ratio is taken within a round. Medians of the rounds. About 6 minutes on two cores.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common
import probe
from PIL import Image

from fieldmark.runtime import image
from fieldmark.runtime.machine import cores
from fieldmark.runtime.predictor import Predictor

#: Answers before the steady state: as many as are in flight at the start, and more.
SKIP = 32
#: Ready tensors that the bare graph is fed with in turn.
RING = 64
LARGE = (4000, 3000)


def small(paths: Sequence[str], folder: Path, count: int) -> Path:
    """Copies of ``count`` photos in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths[:count]):
        shutil.copyfile(path, folder / f"{number:05d}.jpg")
    return folder


def large(paths: Sequence[str], folder: Path, count: int) -> Path:
    """``count`` photos enlarged to 12 megapixels."""
    folder.mkdir(parents=True, exist_ok=True)

    def enlarge(job: tuple[int, str]) -> None:
        photo = image.load(job[1]).resize(LARGE, Image.Resampling.BICUBIC)
        photo.save(folder / f"{job[0]:05d}.jpg", quality=90)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(enlarge, enumerate(paths[:count])))
    return folder


def measure(name: str, model: Path, folder: Path, rounds: int, results: common.Results) -> None:
    """The rows of one folder of photos."""
    predictor = Predictor.load(model)
    preprocess, engine = predictor.preprocess, predictor.engine()
    paths = sorted(str(path) for path in folder.iterdir())
    tensors = [preprocess(image.load(path, preprocess.min_side))[None] for path in paths[:RING]]

    def prepare(place: int) -> Any:
        return preprocess(image.decode(image.read(paths[place % len(paths)]), preprocess.min_side))

    found: dict[str, list[float]] = {}
    for number in range(rounds):
        graph = common.bare(engine, "logits", tensors, len(paths)) / len(paths)
        decode = common.on_all_cores(prepare, len(paths)) / len(paths)
        log, table = results.work / "probe.log", results.work / "predictions.csv"
        words = ["predict", model, folder, "--out", table, "--overwrite", "--quiet"]
        script = Path(probe.__file__)
        ran = common.run([sys.executable, script, log, 8, *words], results.work / "cache", json_line=False)
        notes = [note for note in probe.read(log) if note.answers >= min(SKIP, len(paths) // 2)]
        answers, seconds = notes[-1].answers - notes[0].answers, notes[-1].seconds - notes[0].seconds
        if notes[-1].answers != len(paths):
            sys.exit(f"{notes[-1].answers} answers for {len(paths)} photos")
        once = {
            "bare graph": 1 / graph,
            "decoding and preprocessing": 1 / decode,
            "the machine allows": 1 / (graph + decode),
            "predict, steady state": answers / seconds,
            "predict, whole process": len(paths) / ran.seconds,
            "ratio": answers / seconds * (graph + decode),
        }
        for what, value in once.items():
            found.setdefault(what, []).append(value)
        print(f"  round {number + 1}: {once}", file=sys.stderr)
    ratios = found.pop("ratio")
    for what, values in found.items():
        steady = what == "predict, steady state"
        results.add(
            *(what, statistics.median(values), "photos/s"),
            set=name,
            low=min(values),
            high=max(values),
            ratio=statistics.median(ratios) if steady else None,
            wanted="ratio >= 0.9" if steady else None,
            n=len(paths),
            note=f"{rounds} rounds"
            + (
                f"; ratio: to what the machine allows, {min(ratios):.3f} to {max(ratios):.3f}"
                if steady
                else ""
            ),
        )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--model", type=Path, help="a model folder  [default: trained on grocery_store]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", type=int, default=1000, metavar="PHOTOS", help="[default: 1000]")
    parser.add_argument("--large", type=int, default=160, metavar="PHOTOS", help="[default: 160]")
    chosen = parser.parse_args()
    results = common.Results(__file__, chosen, also=["probe"])
    model = chosen.model or common.trained(results, "grocery_store", chosen.limit) / "model"
    paths = common.catalog("grocery_store", chosen.limit).of_split("test").paths
    with common.cold(results.work) as folder:
        for name, make, count in (
            ("small photos", small, chosen.small),
            ("12 MP photos", large, chosen.large),
        ):
            if not results.done("predict, steady state", name):
                print(name, file=sys.stderr)
                measure(name, model, make(paths, folder / make.__name__, count), chosen.rounds, results)


if __name__ == "__main__":
    main()
