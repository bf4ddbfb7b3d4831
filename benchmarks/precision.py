"""On which backbones does bfloat16 make training on this CPU quicker?  ``python benchmarks/precision.py``

Training steps of timm's network in eager mode, channels last, AdamW, batches of 32 ready tensors of 224 px, in single
precision and under autocast to bfloat16, in turn, round by round; weights are random, which changes no speed. The ratio
is taken within a round; medians of the rounds. `--amp auto` does such a trial by itself, within a budget, on CPUs that
multiply bfloat16 by themselves, and takes it where steps are 1.15 times as quick. Two minutes on two cores.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict

import common
import torch
from loader_speed import BATCH, trainer

BACKBONES = ("tf_efficientnet_lite0", "resnet50", "convnext_tiny", "vit_small_patch16_224")
PRECISIONS = {"float32": False, "bfloat16": True}
CLASSES, SIZE = 100, 224


def measure(architecture: str, rounds: int, steps: int, results: common.Results) -> None:
    """The rows of one backbone."""
    images = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (BATCH,))
    trainers = {name: trainer(CLASSES, architecture, short) for name, short in PRECISIONS.items()}
    found: dict[str, list[float]] = defaultdict(list)
    for train in trainers.values():
        train(images, labels)
    for _ in range(rounds):
        for name, train in trainers.items():
            began = time.perf_counter()
            for _ in range(steps):
                train(images, labels)
            found[name].append(steps * BATCH / (time.perf_counter() - began))
    for name, values in found.items():
        ratios = [value / whole for value, whole in zip(values, found["float32"], strict=True)]
        own = {"low": min(values), "high": max(values), "ratio": statistics.median(ratios), "n": rounds}
        note = "ratio to float32; least and most of the rounds"
        results.add(f"{architecture}, {name}", statistics.median(values), "photos/s", **own, note=note)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="training steps a round")
    chosen = parser.parse_args()
    results = common.Results(__file__, chosen, also=("loader_speed",))
    for architecture in chosen.backbones:
        if not results.done(f"{architecture}, bfloat16"):
            measure(architecture, chosen.rounds, chosen.steps, results)


if __name__ == "__main__":
    main()
