"""Is the loader faster than the training step it feeds?  ``python benchmarks/loader_speed.py``

The training step is timm's EfficientNet-Lite0 in eager mode, channels last, AdamW, batches of 32, on ready tensors; the
loader alone prepares as many photos with the default augmentation, decoding every JPEG (as in the first epoch, or where
photos do not fit in memory) or from memory (as in later epochs). The three are measured in turn, round by round, at 224
and 320 px; the ratio is taken within a round. Medians of the rounds. The share of the time that training waits for
photos is measured with the two together, decoding every JPEG. About 6 minutes on two cores.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import common
import numpy as np
import timm
import torch

from fieldmark.data.loader import Loader, Photos
from fieldmark.nn.backbone import Backbone
from fieldmark.nn.weights import DEFAULT_BACKBONE, resolve
from fieldmark.runtime.machine import cores

BATCH = 32
STEP, DECODED, KEPT = "training step", "loader, decoding", "loader, from memory"
WAITING = "training waits for photos"


def trainer(
    classes: int, architecture: str = "tf_efficientnet_lite0", short: bool = False
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """One optimiser step on (images, labels). short: in bfloat16."""
    model = timm.create_model(architecture, num_classes=classes).train()
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=short):
            logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def orders(photos: int, batches: int, epoch: int) -> Iterator[tuple[np.ndarray, int]]:
    """The same random order in every round."""
    order = np.random.default_rng(0).permutation(photos)
    for number in range(batches):
        yield np.take(order, np.arange(number * BATCH, (number + 1) * BATCH), mode="wrap"), epoch


def drain(loader: Loader, batches: int, epoch: int) -> float:
    """Photos a second."""
    began = time.perf_counter()
    for _ in loader.batches(orders(len(loader.photos), batches, epoch)):
        pass
    return batches * BATCH / (time.perf_counter() - began)


def measure(name: str, paths: list[str], classes: int, size: int, rounds: int, steps: int, results) -> None:
    """The rows of one size."""
    preprocess = Backbone(resolve(DEFAULT_BACKBONE, pretrained=False), size).preprocess()
    train = trainer(classes)
    images = torch.randn(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (BATCH,))
    decoding = Loader(Photos(paths, min_side=preprocess.min_side, cache_bytes=0), preprocess)
    used = np.unique(np.concatenate([rows for rows, _ in orders(len(paths), 4 * steps, 0)]))
    memory = Loader(Photos([paths[row] for row in used], min_side=preprocess.min_side), preprocess)
    memory.photos.fill()
    train(images, labels)
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        began = time.perf_counter()
        for _ in range(steps):
            train(images, labels)
        found[STEP].append(steps * BATCH / (time.perf_counter() - began))
        found[DECODED].append(drain(decoding, 4 * steps, number))
        found[KEPT].append(drain(memory, 4 * steps, number))
        began, waited = time.perf_counter(), 0.0
        stream = decoding.batches(orders(len(paths), steps, number))
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - asked
            train(batch, labels)
        found[WAITING].append(waited / (time.perf_counter() - began))
        stream.close()
    for what, values in found.items():
        ratios = [value / step for value, step in zip(values, found[STEP], strict=True)]
        fed = what in (DECODED, KEPT)
        results.add(
            f"{what}, {size} px",
            statistics.median(values),
            "share" if what == WAITING else "photos/s",
            set=name,
            low=min(values),
            high=max(values),
            ratio=statistics.median(ratios) if fed else None,
            wanted="ratio >= 1.5" if fed else "",
            n=rounds,
            note=f"ratio to the training step; {cores()} threads; least and most of the rounds"
            if fed
            else "",
        )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--set", default="grocery_store")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 320])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="training steps a round")
    chosen = parser.parse_args()
    results = common.Results(__file__, chosen)
    catalog = common.catalog(chosen.set, chosen.limit)
    for size in chosen.sizes:
        if not results.done(f"{KEPT}, {size} px", chosen.set):
            measure(
                chosen.set,
                [str(path) for path in catalog.paths],
                len(catalog.classes),
                size,
                chosen.rounds,
                chosen.steps,
                results,
            )


if __name__ == "__main__":
    main()
