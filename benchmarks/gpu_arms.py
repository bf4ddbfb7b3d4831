"""What benchmarks/gpu.py measures: photos, weights, and the same network in fieldmark's loop and in a plain one."""

from __future__ import annotations

import csv
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import common
import timm
import torch
from peers.gpu_loop import PlainLoop
from peers.shared import Row
from safetensors.torch import load_file

LOOKALIKES = {"n_species": 12, "per_species": 60, "size": 512}
TRIAL = {"n_species": 3, "per_species": 10, "size": 64}
#: Where Keras's ResNet-50 differs from timm's: of bytes it takes the mean and nothing else.
KERAS = {"mean": (0.48502, 0.45796, 0.40760), "std": (1 / 255,) * 3}


class Case(NamedTuple):
    set: str
    size: int
    backbone: str
    seed: int


class Split(NamedTuple):
    """Photos (path, class number) that are learned, that judge on the way, and that test."""

    train: list[Row]
    held: list[Row]
    test: list[Row]
    classes: int


class Setting(NamedTuple):
    """What all jobs share."""

    device: torch.device
    batch: int
    workers: int
    epochs: int
    weights: dict[str, Path]
    work: Path
    trial: bool


def split(name: str, setting: Setting) -> Split:
    """A set; one photo in ten of those to learn from judges where the set names none."""
    from fieldmark.data import lookalikes

    if name == "lookalikes":
        folder = setting.work / ("lookalikes-trial" if setting.trial else "lookalikes")
        if not (folder / "metadata.csv").is_file():
            drawn: dict[str, Any] = TRIAL if setting.trial else LOOKALIKES
            lookalikes.write(folder, unknown=0, workers=setting.workers or 1, **drawn)
    else:
        folder = common.photos(name)
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        told = list(csv.DictReader(file))
    number = {label: place for place, label in enumerate(sorted({row["label"] for row in told}))}
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in told:
        rows[row["split"]].append((str(folder / row["file_name"]), number[row["label"]]))
    train, held = rows["train"], rows["val"]
    if not held:
        train, held = [one for place, one in enumerate(train) if place % 10], train[::10]
    return Split(train, held, rows["test"], len(number))


def as_keras(model: Any) -> Any:
    """timm's ResNet-50 as Keras's weights want it: another epsilon, and strides in each stage's first convolution."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return model


def source(backbone: str, setting: Setting) -> Any:
    """Where the weights are (`fieldmark.nn.weights.Source`); without a file there are none."""
    from fieldmark.nn.weights import Source, resolve
    from fieldmark.runtime.errors import FieldmarkError

    if file := setting.weights.get(backbone):
        return Source(backbone, file, "", {"pretrained_cfg_overlay": KERAS} if backbone == "resnet50" else {})
    try:
        return resolve(backbone, offline=True, pretrained=not setting.trial)
    except FieldmarkError:
        return Source(backbone, None, "random", {})


def plain_loop(case: Case, photos: Split, setting: Setting) -> PlainLoop:
    found = source(case.backbone, setting)
    model = timm.create_model(case.backbone, pretrained=False, num_classes=0, **found.options)
    if found.file:
        state = load_file(found.file)
        model.load_state_dict({name: state[name] for name in model.state_dict()})
        model = as_keras(model) if case.backbone == "resnet50" else model
    torch.manual_seed(case.seed)
    model.reset_classifier(photos.classes)
    where = (case.size, setting.batch, setting.workers, setting.device, case.seed)
    return PlainLoop(model, photos.train, *where)


class Fieldmark:
    """fieldmark's own steps, on the same photos. The head is warmed up before it trains, as fine-tuning does."""

    name = "fieldmark"

    def __init__(self, case: Case, photos: Split, setting: Setting):
        import numpy as np
        from accelerate import Accelerator

        from fieldmark.data.loader import Photos
        from fieldmark.losses.combine import build
        from fieldmark.methods.plain import Plain
        from fieldmark.methods.task import Task
        from fieldmark.nn.backbone import Backbone
        from fieldmark.train.heads.head import EMBEDDING
        from fieldmark.train.network import Network
        from fieldmark.train.recipe import Recipe

        torch.manual_seed(case.seed)
        self.case, self.setting = case, setting
        found = source(case.backbone, setting)
        backbone = Backbone(found, case.size)
        if found.file and case.backbone == "resnet50":
            as_keras(backbone.model)
        self.recipe, self.preprocess = Recipe(epochs=1), backbone.preprocess()
        method = Plain(backbone, (), Task(photos.classes))
        method.add_head(photos.classes, EMBEDDING)
        smoothing = self.recipe.label_smoothing
        criterion = build(
            self.recipe.loss, classes=photos.classes, embedding=EMBEDDING, label_smoothing=smoothing
        )
        self.network = Network(method, criterion)
        gpu = setting.device.type == "cuda"
        self.accelerator = Accelerator(cpu=not gpu, mixed_precision="bf16" if gpu else "no")

        def of(rows: list[Row]) -> Any:
            return Photos([path for path, _ in rows], min_side=self.preprocess.min_side)

        self.train_photos, self.held_photos, self.of = of(photos.train), of(photos.held), of
        self.y, self.y_held = (np.array([label for _, label in rows]) for rows in (photos.train, photos.held))
        self.loop = self._loop(10**6)

    def _loop(self, steps: int) -> Any:
        """fieldmark's loop for so many steps, all of the network, new views every epoch."""
        from fieldmark.train.loop.loop import Loop
        from fieldmark.train.loop.watch import Watch
        from fieldmark.train.plan.plan import Phase, Plan

        recipe, folder = self.recipe, self.setting.work / "gpu-run"
        size = {"size": self.case.size, "batch": min(self.setting.batch, len(self.y))}
        each = max(1, steps // 8)
        phase = Phase(
            steps=steps, lr=recipe.lr, head_lr=recipe.head_lr, judge_every=each, save_every=steps, **size
        )
        told: dict[str, Any] = {"seed": self.case.seed, "photos": len(self.y), "held_out": len(self.y_held)}
        plan = Plan.of(recipe, phases=[phase], **told)
        watch, feed = Watch(time.time()), self._feed(self.held_photos)
        where = (plan, 0, watch, folder, lambda *_: None, self.accelerator)
        return Loop(self.network, feed, self.y, self.y_held, *where)

    def _feed(self, held: Any) -> Any:
        from fieldmark.train.loop.feeds import Feed

        return Feed(
            *(self.train_photos, held, self.preprocess, self.recipe.augment),
            size=self.case.size,
            seed=self.case.seed,
            workers=self.setting.workers,
            device=self.setting.device,
        )

    @property
    def waited(self) -> float:
        return self.loop.batches.waited

    def compile(self) -> str:
        """From now on steps are compiled; a line where they cannot be."""
        from fieldmark.train.plan.measure import compile_step

        return compile_step(self.network, self.loop.example(), self.accelerator.autocast)

    def steps(self) -> Iterator[int]:
        """Train without end; yields the photos of each step."""
        for rows, images, boxes in self.loop.batches.since(self.loop.step):
            self.loop._train(rows, images, boxes)
            yield len(rows)

    def train(self, epochs: int) -> None:
        """So many passes over the photos, and the weights that it ends with."""
        from fieldmark.train.heads.warm import FIRST_EPOCH, warm_head

        views = [self._descriptors(epoch) for epoch in (None, FIRST_EPOCH, FIRST_EPOCH + 1)]
        warm_head(self.network.head, views, self.y, self.network.criterion, self.case.seed)
        self.loop = self._loop(max(1, epochs * (len(self.y) // self.loop.batch)))
        self.loop.run()

    @torch.no_grad()
    def _descriptors(self, epoch: int | None) -> Any:
        """Of all photos, or of a view of each: [N, d], on the CPU; the head is brought there, too."""
        import numpy as np

        self.network.module.to(self.setting.device).eval()
        parts = np.array_split(np.arange(len(self.y)), -(-len(self.y) // self.setting.batch))
        described = []
        for x in self._feed(self.held_photos).train.batches([(rows, epoch) for rows in parts]):
            with self.accelerator.autocast():
                described.append(self.network.method.describe(x).half().cpu())
        self.network.module.cpu()
        return torch.cat(described).numpy()

    def right(self, rows: list[Row]) -> int:
        """How many photos are named rightly."""
        loop = self.loop
        loop.feed = self._feed(self.of(rows))
        answers = loop.judge.logits().argmax(1).tolist()
        return sum(answer == label for answer, (_, label) in zip(answers, rows, strict=True))
