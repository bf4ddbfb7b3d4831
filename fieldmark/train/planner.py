"""From the number of photos, measured speed and the budget to a plan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fieldmark.data.sampler import Sampler
from fieldmark.nn.chain import Call
from fieldmark.train.feeds import Lower
from fieldmark.train.finish import KNOWN
from fieldmark.train.loop import Watch
from fieldmark.train.network import Network
from fieldmark.train.plan import Phase, Plan
from fieldmark.train.recipe import Recipe

#: Where networks are cut, as shares of the multiplications that lie before the cut: for maps that are kept, and
#: for training on new views.
KEPT, FRESH = 0.65, 0.35
#: Where the budget allows fewer epochs of new views than this, maps are kept.
FEWEST_FRESH = 6.0
#: Fewer epochs than this change nothing for the better: the instant model is the answer.
FEWEST = 1.5
#: Views that are kept at most, and the share of the time that making them may take.
MOST_VIEWS, MAKING = 8, 0.3
#: Photos a step on a CPU and on a GPU: large enough to be quick, small enough for many steps.
BATCH, BATCH_GPU = 32, 64
#: Looks at the held-out photos in a phase, and seconds between checkpoints.
LOOKS, SAVE_SECONDS = 8, 20.0
#: Augmented views that the head is warmed up with, and the share of the time that this may take.
WARM_VIEWS, WARMING = 2, 0.1
#: Views are this much smaller than the photos that are answered later: cropping makes things look larger in them,
#: and a network is best at the apparent size that it learned (Touvron et al., FixRes, NeurIPS 2019).
SMALLER = 0.7
#: Seconds for the model's graph, its check and its files, beside looking at photos again.
WRITING = 8.0
#: Share of the budget that plans leave alone: no machine is always equally quick.
RESERVE = 0.02


@dataclass(frozen=True)
class Speed:
    """Photos a second: through the frozen part, and in training steps behind it."""

    lower: float
    step: float

    def seconds(self, photos: int, epochs: float, views: int) -> float:
        """For so many epochs; views: kept ones, 0 for new ones each epoch."""
        return photos * (epochs / self.step + (views or epochs) / self.lower)


class Planner:
    """rate: photos a second that the finished model will look at; gpu: is there one? world: processes."""

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        watch: Watch,
        rate: float,
        *,
        gpu: bool,
        workers: int | None,
        world: int = 1,
    ):
        self.recipe, self.seed, self.watch, self.rate = recipe, seed, watch, rate
        self.gpu, self.workers, self.world = gpu, workers, world
        self.size, self.entries = 0, 0

    def plan(self, network: Network, photos: int, held: int, sampler: Sampler) -> Plan | None:
        """None where the budget is too small. photos, held: how many train and judge."""
        recipe, warm = self.recipe, WARM_VIEWS
        self.size = self._size(network)
        chosen: list[tuple[str, int, float, float | None]] | None  # cut, views, epochs, seconds a step
        if recipe.budget is None:
            cut = self._cut(network, FRESH)
            chosen = [(cut, 0, float(recipe.epochs or 1), None)]
            why = f"{recipe.epochs} epochs, as asked for"
        else:
            left = self.deadline(photos, held) - self.watch.spent
            quick = self.rate * (network.size / self.size) ** 2  # views are smaller than photos
            warm = int(min(WARM_VIEWS, max(0.0, WARMING * left * quick / photos)))
            chosen, why = self._within(network, photos, left - warm * photos / quick)
        if chosen is None:
            return None
        phases = [self._phase(network, photos, *one) for one in chosen]
        return Plan(
            seed=self.seed,
            photos=photos,
            held_out=held,
            warm_views=warm,
            phases=phases,
            augment=recipe.augment,
            sampler=sampler,
            optimizer=recipe.optimizer,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
            average=recipe.average,
            clip=recipe.clip,
            patience=recipe.patience,
            on_nan=recipe.on_nan,
            why=why,
        )

    def deadline(self, photos: int, held: int) -> float:
        """Seconds from the start by which the last step must be done: photos are then looked at once more."""
        assert self.recipe.budget is not None
        return self.recipe.budget * (1 - RESERVE) - WRITING - (held + min(KNOWN, photos)) / self.rate

    def _size(self, network: Network) -> int:
        """Side of the views, in pixels."""
        if self.recipe.train_size is not None:
            return self.recipe.train_size
        if network.method.backbone.fixed:
            return network.size
        return max(32, round(SMALLER * network.size / 32) * 32)

    def _within(
        self, network: Network, photos: int, left: float
    ) -> tuple[list[tuple[str, int, float, float | None]] | None, str]:
        """Kept maps for short budgets, new views where there is time for enough of them."""
        begun = time.perf_counter()
        if left < 10:
            return None, ""
        batch = self._batch(photos)
        if self.recipe.cut is not None or self.gpu:
            cut = self._cut(network, FRESH)
            speed = self._measure(network, cut)
            epochs = (left - time.perf_counter() + begun) / speed.seconds(photos, 1, 0)
            why = f"{speed.step:.0f} photos a second"
            return ([(cut, 0, epochs, batch / speed.step)] if epochs >= FEWEST else None), why
        kept = self._cut(network, KEPT)
        quick = self._measure(network, kept)
        entries = self.entries
        if (
            not kept or quick.seconds(photos, FEWEST_FRESH, 0) < left
        ):  # else new views are out of reach anyway
            fresh = self._cut(network, FRESH)
            slow = self._measure(network, fresh)
            now = left - (time.perf_counter() - begun)
            epochs = now / slow.seconds(photos, 1, 0)
            if epochs >= (FEWEST_FRESH if kept else FEWEST):
                why = f"{epochs:.1f} epochs of new views fit into the budget"
                return [(fresh, 0, epochs, batch * (1 / slow.step + 1 / slow.lower))], why
        if not kept:
            return None, ""
        now = left - (time.perf_counter() - begun)
        room = self.recipe.cache_gb * 1e9 / (photos * entries * 2)
        views = int(max(1, min(MOST_VIEWS, room, MAKING * now * quick.lower / photos)))
        epochs = (now - views * photos / quick.lower) * quick.step / photos
        if epochs < FEWEST or room < 1:
            return None, ""
        why = f"too short for new views every epoch: {views} views a photo are kept as maps"
        return [(kept, views, epochs, batch / quick.step)], why

    def _cut(self, network: Network, most: float) -> str:
        """The last place in the network with at most this share of its multiplications before it."""
        if self.recipe.cut is not None:
            return "" if self.recipe.cut == "none" else self.recipe.cut
        if self.gpu:
            return ""
        images = torch.zeros(1, 3, network.size, network.size)
        usable = network.usable()
        good = [
            link.name
            for link, share in zip(network.links, shares(network.links, images), strict=True)
            if share <= most and link.name in usable
        ]
        return good[-1] if good else ""

    def _batch(self, photos: int) -> int:
        batch = min(self.recipe.batch or (BATCH_GPU if self.gpu else BATCH), photos)
        return max(1, batch // self.world) * self.world

    def _measure(self, network: Network, cut: str) -> Speed:
        """How quickly this machine trains behind this cut, in about four seconds."""
        batch = self.recipe.batch or (BATCH_GPU if self.gpu else BATCH)
        images = torch.rand(batch, 3, self.size, self.size).contiguous(memory_format=torch.channels_last)
        rate, x = float("inf"), images
        if cut:
            lower = Lower(network.open(cut), self.size, self.workers)
            lower(images)
            begun = time.perf_counter()
            x = torch.from_numpy(lower(images)).contiguous(memory_format=torch.channels_last)
            rate = batch / (time.perf_counter() - begun)
            self.entries = x[0].numel()
            lower.close()
        step = _rate(network, x)
        network.close()
        return Speed(rate * self.world, step * self.world)

    def _phase(
        self, network: Network, photos: int, cut: str, views: int, epochs: float, step_seconds: float | None
    ) -> Phase:
        batch = self._batch(photos)
        an_epoch = max(1, photos // batch)
        steps = max(1, round(epochs * an_epoch))
        save = an_epoch if step_seconds is None else max(1, round(SAVE_SECONDS / step_seconds))
        return Phase(
            cut=cut,
            views=views,
            size=self.size,
            steps=steps,
            batch=batch,
            lr=self.recipe.lr,
            head_lr=self.recipe.head_lr,
            judge_every=max(1, -(-steps // LOOKS)),
            save_every=save,
        )


def shares(links: Sequence[Call], images: Tensor) -> list[float]:
    """Share of a network's multiplications that are done once each link of its chain is through."""
    counts, tensor = [], images
    with torch.no_grad():
        for link in links:
            with FlopCounterMode(display=False) as counter:
                tensor = link.module(tensor)
            counts.append(counter.get_total_flops())
    total = max(1, sum(counts))
    return [sum(counts[: number + 1]) / total for number in range(len(counts))]


def _rate(network: Network, x: Tensor, seconds: float = 1.5) -> float:
    """Photos a second in forward and backward passes of a batch [B, ...]; the gradients are dropped."""
    module = network.module
    device = next(module.parameters()).device
    x, targets = x.to(device), torch.zeros(len(x), dtype=torch.long, device=device)
    module.train()
    network.freeze_statistics()
    done, begun = 0, 0.0
    while True:
        module(x, targets)["loss"].backward()
        module.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if not begun:  # the first pass finds memory and algorithms
            begun = time.perf_counter()
            continue
        done += len(x)
        if time.perf_counter() - begun > seconds:
            return done / (time.perf_counter() - begun)
