"""What is each choice of instant mode worth?  ``python benchmarks/choices.py`` -> ``results/instant_choices.csv``

Out-of-fold predictions on the training photos only (five folds, as instant mode makes them); the test photos are not
looked at. One choice is changed at a time: pooling and parts, steps of Newton-Schulz (and the exact root), sides in
pixels, channels kept. The backbone looks at each photo once a side; its last two maps go through every variant, which
are kept in the work folder. ``difference``: points of top-1 to the default, its spread is the standard error over
photos. About 12 minutes on two cores.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np

SETS = ("cub100", "grocery_store")
SIDES = (224, 320)
#: Photos whose maps are in memory at once.
CHUNK = 64


@dataclass(frozen=True)
class Part:
    """One part of a descriptor: a map (``last``, ``middle``) or ``mean``; channels kept; steps (0: exact root)."""

    of: str
    channels: int = 0
    steps: int = 5


MEAN, LAST, MIDDLE = Part("mean"), Part("last", 128), Part("middle", 112)
DEFAULT = "default: last 128, middle 112, mean, 5 steps, 320 px"


def _steps(steps: int) -> list[Part]:
    return [Part("last", 128, steps), Part("middle", 112, steps), MEAN]


#: What is tried: name -> sides, parts.
CHOICES: dict[str, tuple[Sequence[int], list[Part]]] = {
    DEFAULT: ((320,), [LAST, MIDDLE, MEAN]),
    "parts: mean only (plain)": ((320,), [MEAN]),
    "parts: last only": ((320,), [LAST]),
    "parts: last, mean": ((320,), [LAST, MEAN]),
    "parts: middle, mean": ((320,), [MIDDLE, MEAN]),
    "parts: last, middle": ((320,), [LAST, MIDDLE]),
    "steps: 3": ((320,), _steps(3)),
    "steps: 8": ((320,), _steps(8)),
    "steps: exact root": ((320,), _steps(0)),
    "channels: last 64, middle 112": ((320,), [Part("last", 64), MIDDLE, MEAN]),
    "channels: last 128, middle 64": ((320,), [LAST, Part("middle", 64), MEAN]),
    "channels: last 64, middle 64": ((320,), [Part("last", 64), Part("middle", 64), MEAN]),
    "sides: 224": ((224,), [LAST, MIDDLE, MEAN]),
    "sides: 320 and 224": ((320, 224), [LAST, MIDDLE, MEAN]),
    "sides: 224, mean only (plain)": ((224,), [MEAN]),
}


def wanted(side: int) -> list[Part]:
    """All parts that some choice needs at one side."""
    return list(dict.fromkeys(part for sides, parts in CHOICES.values() if side in sides for part in parts))


def maps_of(paths: Sequence[str], side: int, graph: Path) -> tuple[Callable[[int], list[Any]], int]:
    """A function from a chunk's start to its maps [B, C, H, W] (middle, last) and means [B, F], and its count."""
    import torch
    from torch import Tensor, nn

    from fieldmark.nn.backbone import Backbone
    from fieldmark.nn.graph import export
    from fieldmark.nn.weights import DEFAULT_BACKBONE, resolve
    from fieldmark.runtime import image
    from fieldmark.runtime.engine import compile_graph
    from fieldmark.runtime.machine import cores
    from fieldmark.runtime.stream import ordered_map

    class Maps(nn.Module):
        """All of a photo's numbers in one row."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = Backbone(resolve(DEFAULT_BACKBONE), side)

        def forward(self, images: Tensor) -> Tensor:
            maps, mean = self.backbone(images)
            return torch.cat([maps[-2].flatten(1), maps[-1].flatten(1), mean], 1)

    module = Maps().eval().requires_grad_(False)
    with torch.inference_mode():
        examples = torch.rand(2, 3, side, side) * 2 - 1
        maps, mean = module.backbone(examples)
        shapes = [tuple(one.shape[1:]) for one in (maps[-2], maps[-1], mean)]
    export(module, examples, graph, "maps")
    engine = compile_graph(graph, outputs=["maps"], workers=cores())
    preprocess = module.backbone.preprocess()

    def one(path: str) -> np.ndarray:
        photo = image.load(path, preprocess.min_side)
        return engine.run(preprocess(photo)[None], ["maps"])[0][0]

    def chunk(start: int) -> list[Any]:
        rows = torch.from_numpy(np.stack(list(ordered_map(one, paths[start : start + CHUNK], cores()))))
        pieces = rows.split([int(np.prod(shape)) for shape in shapes], 1)
        return [piece.reshape(-1, *shape) for piece, shape in zip(pieces, shapes, strict=True)]

    return chunk, len(paths)


def describe(paths: Sequence[str], side: int, folder: Path) -> dict[Part, np.ndarray]:
    """Every part of every photo at one side, [N, d] in half precision; from the folder where it is there."""
    import torch

    from fieldmark.nn import pooling

    folder.mkdir(parents=True, exist_ok=True)
    files = {part: folder / f"{side}-{part.of}-{part.channels}-{part.steps}.npy" for part in wanted(side)}
    if not all(file.is_file() for file in files.values()):
        chunk, count = maps_of(paths, side, folder / "maps.onnx")
        rows: dict[Part, list[Any]] = {part: [] for part in files}
        for start in range(0, count, CHUNK):
            with torch.inference_mode():
                middle, last, mean = chunk(start)
                for part, found in rows.items():
                    if part.of == "mean":
                        answer = pooling.l2_normalise(mean)
                    else:
                        x, seed = (last, 1) if part.of == "last" else (middle, 2)
                        reduced = pooling.FixedReduction(x.shape[1], part.channels, seed)(x)
                        covariance = pooling.covariance(reduced)
                        root = (
                            pooling.newton_schulz_root(covariance, part.steps)
                            if part.steps
                            else exact(covariance)
                        )
                        answer = pooling.l2_normalise(pooling.UpperTriangle(part.channels)(root))
                    found.append(answer.numpy().astype(np.float16))
            print(
                f"\r  {side} px: {min(start + CHUNK, count)} of {count}", end="", file=sys.stderr, flush=True
            )
        print(file=sys.stderr)
        for part, found in rows.items():
            np.save(files[part], np.concatenate(found))
    return {part: np.load(file, mmap_mode="r") for part, file in files.items()}


def exact(covariance: Any) -> Any:
    """Square root by eigendecomposition."""
    import torch

    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()[:, None] @ vectors.transpose(1, 2)


def judge(parts: Sequence[np.ndarray], y: np.ndarray, fold: np.ndarray) -> Any:
    """Out-of-fold predictions as instant mode makes them."""
    from fieldmark.train.heads.head import Scaling, Subspace, choose

    z = np.concatenate(parts, axis=1)
    return choose(
        Subspace.fit(z, Scaling.fit(z, [part.shape[1] for part in parts]), y), y, int(y.max()) + 1, fold
    )


def measure(name: str, limit: int | None, results: common.Results) -> None:
    """All choices on one set."""
    from fieldmark.data import duplicates
    from fieldmark.data.split import folds
    from fieldmark.runtime.metrics import wilson

    photos = common.catalog(name, limit).of_split("train", "val")
    y = np.unique(np.asarray(photos.labels, object).astype(str), return_inverse=True)[1]
    fold = folds(y, duplicates.groups(duplicates.fingerprints(photos.paths)), 5, 0)
    folder = results.work / "choices" / f"{name}-{limit or 'all'}-{results.facts['commit']}"
    if folder.name.endswith("+"):  # made by other code, perhaps
        shutil.rmtree(folder, ignore_errors=True)
    described = {side: describe(photos.paths, side, folder) for side in SIDES}
    default: np.ndarray | None = None
    for what, (sides, parts) in CHOICES.items():
        choice = judge([described[side][part] for side in sides for part in parts], y, fold)
        right = choice.logits.argmax(1) == y
        default = right if default is None else default
        own: dict[str, Any] = {"set": name, "seed": 0, "n": len(y)}
        low, high = wilson(int(right.sum()), len(y))
        difference = 100 * (right.astype(float) - default)
        numbers = sum(described[side][part].shape[1] for side in sides for part in parts)
        note = f"95% interval; {numbers} numbers a photo; ridge {choice.ridge:.2g}"
        results.add(f"{what}, top-1", float(right.mean()), "share", **own, low=low, high=high, note=note)
        results.add(f"{what}, log loss", choice.nll, "nats", **own, note="after temperature")
        if what != DEFAULT:
            error = float(difference.std() / np.sqrt(len(y)))
            results.add(f"{what}, difference", float(difference.mean()), "points", **own, spread=error)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--sets", nargs="+", default=list(SETS), metavar="SET")
    chosen = parser.parse_args()
    results = common.Results(__file__, chosen, "instant_choices")
    os.environ["FIELDMARK_CACHE"] = str(results.work / "cache")
    last = f"{list(CHOICES)[-1]}, difference"
    for name in chosen.sets:
        if not results.done(last, name, 0):
            print(name, file=sys.stderr)
            measure(name, chosen.limit, results)


if __name__ == "__main__":
    main()
