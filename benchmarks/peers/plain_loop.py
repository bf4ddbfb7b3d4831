"""Peer: a careful plain loop of timm's parts, as one writes it by hand.

``python benchmarks/peers/plain_loop.py FOLDER --weights FILE --out model.safetensors --seconds 600``

Everything is trained at once: 224 px, channels-last, batches of 32, random resized crop, flip and colour jitter,
AdamW at 1e-3 with weight decay 0.05 (none on norms and biases), label smoothing 0.1, one cycle of the learning rate.
The first steps run at its starting rate and are timed; they say how many steps fit into the budget, and the cycle is
laid over the rest. No step is thrown away, and the last epoch need not be whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import shared

BATCH, RATE, DECAY, SMOOTHING = 32, 1e-3, 0.05, 0.1
#: Share of the photo that a crop keeps, at least; strength of the colour jitter.
SCALE, JITTER = 0.35, 0.2
#: The cycle: starting rate as a share of the highest, and share of the steps that rise to it.
START, RISE = 0.1, 0.25
#: Steps before the plan, and how many of these are too early to be timed.
FIRST, IGNORED = 16, 4


def loader(split: shared.Split, model: Any, workers: int, seed: int) -> Any:
    """Shuffled batches of augmented photos."""
    import timm
    import torch
    from torch.utils.data import DataLoader

    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(
        **config, is_training=True, scale=(SCALE, 1.0), color_jitter=JITTER
    )
    photos: Any = shared.Photos(split.train, transform)
    return DataLoader(
        photos,
        batch_size=min(BATCH, len(photos)),
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )


def endless(batches: Any) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from batches


def main() -> None:
    chosen = shared.parser(__doc__).parse_args()
    clock = shared.Clock(chosen.started, chosen.seconds)
    import torch
    from timm.optim import create_optimizer_v2

    torch.manual_seed(chosen.seed)
    split = shared.read(chosen.photos, chosen.limit)
    model = shared.network(len(split.classes), chosen.weights).to(memory_format=torch.channels_last).train()
    optimizer = create_optimizer_v2(model, "adamw", lr=RATE * START, weight_decay=DECAY)
    judge = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    batches = endless(loader(split, model, chosen.workers, chosen.seed))

    def step() -> int:
        images, labels = next(batches)
        loss = judge(model(images.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return len(labels)

    began, passes = time.time(), 0
    for number in range(FIRST):
        if number == IGNORED:
            timed = time.time()
        passes += step()
    each = (time.time() - timed) / (FIRST - IGNORED)
    steps = max(2, int(clock.left() / each))
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=steps, pct_start=RISE, div_factor=1 / START
    )
    for number in range(steps):
        passes += step()
        if number + 1 < steps:
            cycle.step()
    training = time.time() - began
    shared.save(model, chosen.out)
    saved = clock.seconds()

    right = shared.right(model, split.test, chosen.workers)
    settings = f"224 px, AdamW {RATE:g}, batch {BATCH}, {FIRST} + {steps} steps"
    shared.tell(clock, saved, training, passes, split, right, settings, ["timm"])


if __name__ == "__main__":
    main()
