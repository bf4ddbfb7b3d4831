"""What the peers share: flags, photos, network, the clock, the last line. No fieldmark: it runs in any environment.

A peer trains on the photos of train and val of a folder with ``metadata.csv`` (file_name, label, split), saves its
weights, and then, off the clock, judges the photos of test once. The settings were written down before any of these
test photos was looked at and were not changed afterwards.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image

STARTED = time.time()
ARCHITECTURE = "tf_efficientnet_lite0"
#: Share of the time left that is not planned for, since no machine keeps its speed.
MARGIN = 0.03
Row = tuple[str, int]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The flags of every peer."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("photos", type=Path, help="folder with metadata.csv")
    made.add_argument("--weights", type=Path, required=True, help="ImageNet, safetensors, as timm names them")
    made.add_argument("--out", type=Path, required=True, help="safetensors")
    made.add_argument("--seconds", type=float, default=600, help="budget  [default: 600]")
    made.add_argument("--limit", type=int, metavar="CLASSES", help="the first classes only: a trial")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--workers", type=int, default=2, help="processes that read photos  [default: 2]")
    made.add_argument(
        "--started", type=float, default=STARTED, help="when the clock began, seconds since 1970"
    )
    return made


@dataclass(frozen=True)
class Split:
    """Photos (path, class number) that are learned from and judged; names of the classes, in order."""

    train: list[Row]
    test: list[Row]
    classes: list[str]


def read(folder: Path, limit: int | None = None) -> Split:
    """The photos of a folder; of its first ``limit`` classes by name only."""
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    classes = sorted({row["label"] for row in rows})[:limit]
    number = {name: place for place, name in enumerate(classes)}
    known = [
        (row["split"], (str(folder / row["file_name"]), number[row["label"]]))
        for row in rows
        if row["label"] in number
    ]
    train = [photo for split, photo in known if split in ("train", "val")]
    return Split(train, [photo for split, photo in known if split == "test"], classes)


class Photos:
    """A data set of (transformed photo, class number) for torch's DataLoader."""

    def __init__(self, rows: list[Row], transform: Callable[[Image.Image], Any]):
        self.rows, self.transform = rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.rows[index]
        with Image.open(path) as photo:
            return self.transform(photo.convert("RGB")), label


def network(classes: int, weights: Path) -> Any:
    """timm's network with a new head of so many classes."""
    import timm

    overlay = {"file": str(weights)}
    return timm.create_model(
        ARCHITECTURE, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes
    )


def right(model: Any, rows: list[Row], workers: int) -> int:
    """How many photos are named rightly, seen as timm's configuration says (resized, middle crop)."""
    import timm
    import torch
    from torch.utils.data import DataLoader

    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    photos: Any = Photos(rows, transform)
    count = 0
    with torch.inference_mode():
        for images, labels in DataLoader(photos, batch_size=32, num_workers=workers):
            count += int((model.eval()(images).argmax(1) == labels).sum())
    return count


@dataclass
class Clock:
    """Seconds from the start of the process; measuring the speed ahead of training can be taken off."""

    started: float
    budget: float
    off: float = 0.0
    _since: float = field(default=0.0, repr=False)

    def seconds(self) -> float:
        return time.time() - self.started - self.off

    def left(self) -> float:
        """Seconds that may be planned for: what is left, less the margin."""
        return max(0.0, self.budget - self.seconds()) * (1 - MARGIN)

    def __enter__(self) -> Clock:
        """What happens within ``with clock:`` is not counted."""
        self._since = time.time()
        return self

    def __exit__(self, *_: object) -> None:
        self.off += time.time() - self._since


def save(model: Any, path: Path) -> None:
    """Weights as safetensors."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def tell(
    clock: Clock,
    saved: float,
    training: float,
    passes: float,
    split: Split,
    right: int,
    settings: str,
    packages: Iterable[str],
) -> None:
    """Print the last line.

    saved: seconds until the model was on disk; training: seconds of the training steps; passes: photos that went
    through the optimiser, each counted once a pass.
    """
    told = {
        "seconds": saved,
        "photos_per_second": passes / saved,
        "photos_per_second_training": passes / training,
        "top1": right / len(split.test),
        "epochs": passes / len(split.train),
        "right": right,
        "n_train": len(split.train),
        "n_test": len(split.test),
        "measuring_seconds": clock.off,
        "settings": settings,
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", *packages)),
    }
    print(json.dumps(told))
