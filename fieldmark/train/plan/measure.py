"""How quickly this machine trains a network."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fieldmark.data.loader import Loader
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train import memory
from fieldmark.train.loop.averages import undoing
from fieldmark.train.loop.feeds import Lower, maps_tensor
from fieldmark.train.network import Network, Training
from fieldmark.train.plan.loading import Loading, loading

#: Seconds that a speed is measured for.
SECONDS = 1.5
#: Seconds for a trial of another precision, and how many times as quick its steps must be.
TRIAL, PAYS = 0.5, 1.15
#: Photos by which an answer is timed.
ANSWERED = 2
#: A batch twice as large must be so much quicker per photo.
QUICKER = 1.05
Autocast = Callable[[], AbstractContextManager[Any]]


class Trainable(Protocol):
    """What `rate` needs of a network: `Network`, or one from scratch."""

    module: Training
    classes: int

    def freeze_statistics(self) -> None: ...


@dataclass(frozen=True)
class Speed:
    """Photos a second: views that are made and pass the frozen part (inf: that takes no time of the steps'), and in
    training steps behind it.

    entries: of a photo's maps at the cut; views: of each photo in a step; read: seconds that a photo takes more when
    it is first read.
    """

    lower: float
    step: float
    entries: int = 0
    views: int = 1
    read: float = 0.0

    def seconds(self, photos: int, epochs: float, kept: int = 0) -> float:
        """For so many epochs. kept: views that are kept, 0 for new ones each epoch."""
        return photos * (epochs / self.step + (kept or epochs * self.views) / self.lower + self.read)


@torch.no_grad()
def slower(network: Network) -> float:
    """How many times as long an answer of the method takes as its backbone alone: at least 1."""
    method, training = network.method, network.module.training
    images = torch.rand(ANSWERED, 3, network.size, network.size)
    network.module.eval()
    times = []
    for answer in (method.backbone, method.describe):
        passes = []
        for _ in range(3):
            begun = time.perf_counter()
            answer(images)
            passes.append(time.perf_counter() - begun)
        times.append(min(passes))
    network.module.train(training)
    network.freeze_statistics()
    return max(1.0, times[1] / times[0])


class Gauge:
    """Measures training as it will be. batch: photos of a step, of one process; size: side of the views; device: where
    (none: where the network is, else it comes back from there); autocast: of the steps; other: one that is tried beside
    it when a speed is first measured, and taken where it pays."""

    def __init__(
        self,
        batch: int,
        workers: int | None,
        world: int = 1,
        device: torch.device | None = None,
        autocast: Autocast = contextlib.nullcontext,
        other: Autocast | None = None,
    ):
        self.batch, self.workers, self.world = batch, workers, world
        self.device, self.autocast, self.other, self.size = device, autocast, other, 0
        #: Was the other one taken?
        self.changed = False
        #: Side in pixels -> a loader of what is learned (none: its time does not count, as beside a GPU).
        self.loader: Callable[[int], Loader] | None = None
        self._loading: dict[int, Loading] = {}

    def loading(self) -> Loading:
        """Of views of this size; measured once."""
        if self.loader is None or self.device is not None:
            return Loading()
        if self.size not in self._loading:
            self._loading[self.size] = loading(self.loader(self.size))
        return self._loading[self.size]

    def speed(self, network: Network, cut: str, heads: bool = False) -> Speed:
        """How quickly this machine trains behind this cut, in about four seconds. heads: nothing of the backbone."""
        views, numbers, lower = network.method.views, 0, math.inf
        x = self._images(self.batch)
        if heads:
            network.freeze()
        if cut and not network.apart(cut):
            network.freeze(cut)
        elif cut:
            below = Lower(network.open(cut), self.size, self.workers)
            below(x)
            begun = time.perf_counter()
            x = maps_tensor(below(x))
            lower, numbers = self.batch / (time.perf_counter() - begun), x[0].numel()
            below.close()
        step, _ = self._rate(network, torch.cat([x] * views))
        if self.other is not None:
            step = max(step, self._try(network, torch.cat([x] * views), PAYS * step))
        self._back(network)
        made, read = self.loading()
        lower = 1 / (1 / lower + 1 / made) if min(lower, made) < math.inf else math.inf  # both use all cores
        return Speed(lower * self.world, step * self.world, numbers, views, read / self.world)

    def _try(self, network: Network, x: Tensor, least: float) -> float:
        """The rate with the other precision, which is taken from now on where it is so quick; else 0."""
        assert self.other is not None
        now, _ = fitting(network, x, TRIAL, self.other)
        self.changed = now >= least
        if self.changed:
            self.autocast = self.other
        self.other = None
        return now if self.changed else 0.0

    def largest(self, network: Network, batches: Sequence[int]) -> int:
        """The largest of these batches (ascending) that fits into memory and is quicker per photo than the one
        before."""
        best, quickest = batches[0], 0.0
        for batch in batches:
            wanted = max(1, batch // self.world)
            now, fit = self._rate(network, self._images(wanted * network.method.views), 0.5)
            if fit < wanted or now < QUICKER * quickest:
                break
            best, quickest = batch, now
        self._back(network)
        return best

    def compiling(self, network: Network, seconds: float) -> tuple[bool, str]:
        """Do compiled steps save more of these seconds than compiling takes? And a few words on it."""
        x = self._images(self.batch * network.method.views)
        plain, fit = self._rate(network, x)
        x, begun = x[: fit * network.method.views], time.perf_counter()
        why = compile_step(network, x, self.autocast)
        if why:
            self._back(network)
            return False, f"; {why}"
        took = time.perf_counter() - begun
        gain = seconds * (1 - plain / self._rate(network, x)[0])
        as_it_was(network.module)
        self._back(network)
        return gain > took, f"; compiled steps save {max(0, gain):.0f} s, and compiling takes {took:.0f}"

    def _rate(self, network: Network, x: Tensor, seconds: float | None = None) -> tuple[float, int]:
        if self.device is not None:
            network.module.to(self.device)
        return fitting(network, x, seconds, self.autocast)

    def _images(self, count: int) -> Tensor:
        return torch.rand(count, 3, self.size, self.size).contiguous(memory_format=torch.channels_last)

    def _back(self, network: Network) -> None:
        if self.device is not None:
            network.module.cpu()
        network.close()


def fitting(
    network: Trainable, x: Tensor, seconds: float | None = None, autocast: Autocast = contextlib.nullcontext
) -> tuple[float, int]:
    """The `rate` of a batch x [V B, ...], or of half of it, and so on, until it fits into memory; and its photos."""
    views = network.module.method.views
    photos = len(x) // views
    while True:
        try:
            return rate(network, x[: photos * views], seconds, autocast), photos
        except Exception as error:
            if not memory.ran_out(error):
                raise
            if photos < 2:
                raise FieldmarkError(memory.NOT_ONE) from error
        network.module.zero_grad(set_to_none=True)
        memory.give_back()
        photos //= 2


def rate(
    network: Trainable, x: Tensor, seconds: float | None = None, autocast: Autocast = contextlib.nullcontext
) -> float:
    """Photos a second in steps of a batch x [V B, ...] of V views; nothing is learned by it."""
    photos, done, begun = len(x) // network.module.method.views, 0, 0.0
    with steps(network, x, autocast) as step:
        while True:
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if not begun:  # the first pass finds memory and algorithms
                begun = time.perf_counter()
                continue
            done += photos
            if time.perf_counter() - begun > (SECONDS if seconds is None else seconds):
                return done / (time.perf_counter() - begun)


@contextlib.contextmanager
def steps(network: Trainable, x: Tensor, autocast: Autocast) -> Iterator[Callable[[], None]]:
    """What is called for all turns of a step on x [V B, ...], forward and backward. What they leave behind in the
    network's buffers is undone."""
    module = network.module
    learner, device = module.method, next(module.parameters()).device
    x, photos = x.to(device), len(x) // learner.views
    targets = (
        torch.arange(photos, device=device) // 4
    ) % network.classes  # some of one class, some of others

    def step() -> None:
        for turn in range(learner.turns):
            with autocast():
                loss = module(x, targets, boxes=None, turn=turn, progress=0.0, coarse=False)["loss"]
            loss.backward()
            module.zero_grad(set_to_none=True)

    module.train()
    network.freeze_statistics()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # to move its centres, processes wait for each other
        module.criterion.eval()
    undo = undoing(module)
    try:
        yield step
    finally:
        module.criterion.train()
        learner.dropped()
        undo()


def compile_step(network: Trainable, x: Tensor, autocast: Autocast = contextlib.nullcontext) -> str:
    """From now on steps are compiled (`torch.compile`), in place, and the first one, on x [V B, ...], is done; where
    that fails, the network stays as it was, and a line says why."""
    network.module.compile()
    try:
        with steps(network, x, autocast) as step:
            step()
    except Exception as error:  # whatever the compiler raises
        as_it_was(network.module)
        network.module.zero_grad(set_to_none=True)
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"the steps are not compiled: {why}"
    return ""


def as_it_was(module: nn.Module) -> None:
    """The module's calls are no longer compiled."""
    module._compiled_call_impl = None
