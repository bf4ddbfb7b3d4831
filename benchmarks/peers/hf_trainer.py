"""Peer: the Trainer of Hugging Face's transformers round timm's network.

``PYTHON benchmarks/peers/hf_trainer.py FOLDER --weights FILE --out model.safetensors --seconds 600``

It needs an environment of its own, made once (transformers is no dependency of fieldmark):

    uv venv --python 3.11 hf-venv
    uv pip install --python hf-venv/bin/python "transformers[torch]" timm safetensors torchvision

``TrainingArguments`` are the defaults (AdamW, no weight decay, linear fall of the rate, no warm-up) apart from
batches of 32, two loader processes in place of none, and a rate of 1e-3 in place of 5e-5, which is meant for
transformers and leaves a convolutional network with a new head far from trained in minutes. Photos are augmented as in
its image classification example: random resized crop of 224 px and flip. ``num_train_epochs`` may be a fraction: the
speed is measured ahead, on a copy that is thrown away, and that time is not counted, in its favour.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from typing import Any

import shared

BATCH, RATE = 32, 1e-3
#: Steps timed, and how many before these are too early.
TIMED, IGNORED = 10, 4


def wrapped(model: Any) -> Any:
    """The network with the forward that the Trainer calls."""
    import torch

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: Any, labels: Any = None) -> dict[str, Any]:
            logits = self.model(pixel_values)
            loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
            return {"loss": loss, "logits": logits}

    return Wrapped()


def trainer(
    model: Any, rows: list[shared.Row], folder: str, chosen: Any, callback: Any, **length: Any
) -> Any:
    """A Trainer for so many epochs (``num_train_epochs``) or steps (``max_steps``)."""
    import timm
    import torch
    from torchvision import transforms
    from transformers import PrinterCallback, Trainer, TrainingArguments

    config = timm.data.resolve_model_data_config(model.model)
    side = config["input_size"][-1]
    seen = [transforms.RandomResizedCrop(side), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    transform = transforms.Compose([*seen, transforms.Normalize(config["mean"], config["std"])])
    photos: Any = shared.Photos(rows, transform)
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        dataloader_num_workers=chosen.workers,
        seed=chosen.seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **length,
    )

    def collate(batch: list[tuple[Any, int]]) -> dict[str, Any]:
        images, labels = zip(*batch, strict=True)
        return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}

    made = Trainer(
        model=model, args=arguments, train_dataset=photos, data_collator=collate, callbacks=[callback]
    )
    made.remove_callback(PrinterCallback)
    return made


def times() -> Any:
    """A callback that keeps the times at the ends of steps."""
    from transformers import TrainerCallback

    class Times(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.time())

    return Times()


def main() -> None:
    chosen = shared.parser(__doc__).parse_args()
    clock = shared.Clock(chosen.started, chosen.seconds)
    import transformers

    transformers.set_seed(chosen.seed)
    split = shared.read(chosen.photos, chosen.limit)
    model = wrapped(shared.network(len(split.classes), chosen.weights))
    with tempfile.TemporaryDirectory() as folder:
        with clock:
            ends = times()
            steps = IGNORED + TIMED
            trainer(copy.deepcopy(model), split.train, folder, chosen, ends, max_steps=steps).train()
            each = (ends.ends[-1] - ends.ends[IGNORED - 1]) / TIMED
        per_epoch = math.ceil(len(split.train) / BATCH)
        steps = max(1, int(clock.left() / each))
        count = times()
        made = trainer(model, split.train, folder, chosen, count, num_train_epochs=steps / per_epoch)
        began = time.time()
        made.train()
        training = time.time() - began
    shared.save(model.model, chosen.out)
    saved = clock.seconds()

    right = shared.right(model.model, split.test, chosen.workers)
    whole, rest = divmod(len(count.ends), per_epoch)
    passes = whole * len(split.train) + rest * BATCH
    settings = f"224 px, AdamW {RATE:g}, batch {BATCH}, {len(count.ends)} steps"
    shared.tell(clock, saved, training, passes, split, right, settings, ["timm", "transformers"])


if __name__ == "__main__":
    main()
