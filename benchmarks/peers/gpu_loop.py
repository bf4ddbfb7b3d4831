"""Peer of benchmarks/gpu.py: a careful plain loop on a GPU, as one writes it by hand. No fieldmark is in it.

timm's network and its training transforms, a DataLoader with a process a core, pinned memory and no waiting for copies,
channels last, autocast to bfloat16, AdamW in one kernel, cuDNN's quickest kernels, nothing read back within a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import timm
import torch
from peers.shared import Photos, Row
from timm.optim import create_optimizer_v2
from torch.utils.data import DataLoader, RandomSampler

RATE, DECAY, SMOOTHING = 1e-3, 0.05, 0.1
#: Share of the photo that a crop keeps, at least; strength of the colour jitter; batches each process is ahead.
SCALE, JITTER, AHEAD = 0.35, 0.2, 2
#: Share of the steps in which the rate rises, from this share of the highest.
RISE, START = 0.25, 0.1


class PlainLoop:
    """model: timm's, with a head; rows: photos to learn from; size: of the views, in pixels; workers: processes that
    read photos (0: this one does)."""

    name = "plain loop"

    def __init__(
        self,
        model: Any,
        rows: list[Row],
        size: int,
        batch: int,
        workers: int,
        device: torch.device,
        seed: int,
    ):
        torch.manual_seed(seed)
        self.rows, self.batch, self.workers, self.device, self.seed = rows, batch, workers, device, seed
        self.model = model.to(device, memory_format=torch.channels_last).train()
        config = timm.data.resolve_model_data_config(model) | {"input_size": (3, size, size), "crop_pct": 1.0}
        self.optimizer = create_optimizer_v2(model, "adamw", lr=RATE, weight_decay=DECAY, fused=True)
        self.judge = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
        views: dict[str, Any] = {"is_training": True, "scale": (SCALE, 1.0), "color_jitter": JITTER}
        self.views, self.clean = (timm.data.create_transform(**config, **more) for more in (views, {}))
        self.waited, self.step = 0.0, model

    def compile(self) -> str:
        """From now on steps are compiled."""
        self.step = torch.compile(self.model)
        return ""

    def steps(self, count: int | None = None) -> Iterator[int]:
        """Train; yields the photos of each step. count: steps (none: without end)."""
        self.model.train()
        photos: Any = Photos(self.rows, self.views)
        batches = DataLoader(
            photos,
            batch_size=self.batch,
            sampler=RandomSampler(
                photos,
                num_samples=self.batch * (count or 10**6),
                generator=torch.Generator().manual_seed(self.seed),
            ),
            **self._reading(AHEAD),
        )
        schedule = None
        if count:
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer, RATE, total_steps=count + 1, pct_start=RISE, div_factor=1 / START
            )
        source = iter(batches)
        for _ in range(count or 10**6):
            asked = time.perf_counter()
            images, labels = next(source)
            self.waited += time.perf_counter() - asked
            images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
            labels = labels.to(self.device, non_blocking=True)
            with self._autocast():
                loss = self.judge(self.step(images), labels)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if schedule:
                schedule.step()
            yield len(labels)

    def train(self, epochs: int) -> None:
        """So many passes over the photos, with a rate that rises and falls."""
        for _ in self.steps(math.ceil(epochs * len(self.rows) / self.batch)):
            pass

    def right(self, rows: list[Row]) -> int:
        """How many photos are named rightly."""
        self.model.eval()
        photos: Any = Photos(rows, self.clean)
        count = torch.zeros((), dtype=torch.long, device=self.device)
        with torch.inference_mode(), self._autocast():
            for images, labels in DataLoader(photos, batch_size=self.batch, **self._reading(AHEAD)):
                answers = self.model(images.to(self.device, memory_format=torch.channels_last)).argmax(1)
                count += (answers == labels.to(self.device)).sum()
        return int(count)

    def _reading(self, ahead: int) -> dict[str, Any]:
        pinned = self.device.type == "cuda"
        more = {"prefetch_factor": ahead} if self.workers else {}
        return {"num_workers": self.workers, "pin_memory": pinned, **more}

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")
