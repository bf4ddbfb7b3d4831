"""From the number of photos, measured speed and the budget to a plan."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch

from fieldmark.data.loader import Loader
from fieldmark.data.sampler import Sampler
from fieldmark.runtime.errors import UsageError
from fieldmark.train.bundle.finish import known_within
from fieldmark.train.loop.watch import Watch
from fieldmark.train.network import Network
from fieldmark.train.plan.cuts import FRESH, Cuts, entries
from fieldmark.train.plan.measure import Autocast, Gauge, Speed
from fieldmark.train.plan.plan import Phase, Plan, deadline
from fieldmark.train.plan.stretch import Stretch, ease, round32, smaller, split
from fieldmark.train.recipe import Recipe

#: Where the budget allows fewer epochs of new views than this, maps are kept.
FEWEST_FRESH = 6.0
#: Fewer epochs than this change nothing for the better: the instant model is the answer.
FEWEST = 1.5
#: Where nothing else may be given instead: any at all.
ANY = 0.05
#: Views that are kept at most; each is learned from so many times or more: in the same time, twice from two views is
#: better than once from three.
MOST_VIEWS, REPEATS = 8, 2
#: Share of the training that kept maps have where new views come after them.
FIRST = 0.25
#: New layers learn alone at first: share of the time (not at all where it holds no epoch), views that are kept for it,
#: epochs where epochs were asked for, and at most.
HEADS, HEADS_VIEWS, HEADS_EPOCHS, HEADS_MOST = 0.1, 2, 4, 12
#: Photos a step on a CPU and on a GPU: large enough to be quick, small enough for many steps. On a GPU, within a
#: budget, the quickest of some is found, with so many steps an epoch at least.
BATCH, BATCH_GPU, BATCHES, FEWEST_STEPS = 32, 64, (32, 64, 128, 256), 16
#: Seconds of training below which compiling is not tried.
LONG = 300.0
#: Looks at the held-out photos in a phase, at most; the share of its time that they may take, but for one; the looks at
#: its start and its end beside them; an answer is so many times as quick as a step. And seconds between checkpoints.
LOOKS, LOOKING, MORE_LOOKS, ANSWER, SAVE_SECONDS = 8, 0.1, 3, 3.0, 20.0
#: Augmented views that the head is warmed up with, and the share of the time that this may take.
WARM_VIEWS, WARMING = 2, 0.1
#: Views are this much smaller than the photos that are answered later: cropping makes things look larger in them,
#: and a network is best at the apparent size that it learned (Touvron et al., FixRes, NeurIPS 2019).
SMALLER = 0.7


class Planner:
    """rate: photos a second that the finished model will look at; gpu: is there one? world: processes; device:
    where steps are measured (none: where the network is); autocast: of the steps; other: as `Gauge` has it."""

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
        device: torch.device | None = None,
        autocast: Autocast = contextlib.nullcontext,
        other: Autocast | None = None,
    ):
        self.recipe, self.seed, self.watch, self.rate = recipe, seed, watch, rate
        self.fewest = FEWEST if recipe.floor else ANY
        self.gpu, self.world = gpu, world
        self.batch = recipe.batch or (BATCH_GPU if gpu else BATCH)
        self.gauge = Gauge(self.batch, workers, world, device if gpu else None, autocast, other)
        self.size, self.sides, self.held, self.larger = 0, list[int](), 0, 1.0
        self.cuts = Cuts(recipe, gpu)

    def plan(
        self,
        network: Network,
        photos: int,
        held: int,
        sampler: Sampler,
        fresh: bool = False,
        loader: Callable[[int], Loader] | None = None,
    ) -> Plan | None:
        """None where the budget is too small.

        photos, held: how many train and judge; fresh: are there new layers between backbone and head? loader: by the
        side of the views, of the photos that train (none: loading takes no time). Raises UsageError for what this
        backbone cannot do.
        """
        self.gauge.loader = loader
        recipe, warm, quick = self.recipe, 0 if fresh else WARM_VIEWS, math.inf
        if recipe.cut not in (None, "none"):
            network.check(recipe.cut)
        network.method.begin(0)  # what does not learn takes no time
        self.size = self.gauge.size = self._size(network)
        self.held, self.larger = held, (network.size / self.size) ** 2  # photos are larger than views
        self.sides = smaller(self.size) if recipe.progressive else []
        if recipe.progressive and network.method.backbone.fixed:
            name = network.method.backbone.source.architecture
            raise UsageError(f"--progressive needs a backbone for any size: {name} takes {network.size} px")
        compiled, end = recipe.compile == "yes", math.inf
        if recipe.budget is None:
            found, why = self._asked(network, photos, fresh)
        else:
            end = self.deadline(photos, held)
            left = end - self.watch.spent
            quick = self.rate * self.larger
            warm = int(min(warm, max(0.0, WARMING * left * quick / photos)))
            found, why = self._within(network, photos, end - warm * photos / quick, fresh)
            if found and self._may_compile(found[-1]):
                compiled, more = self.gauge.compiling(network, found[-1].seconds)
                why += more
        if not found:
            return None
        if recipe.views == "kept" and not any(one.views for one in found):
            why += "; no maps can be kept here, so views are new"
        if recipe.phases == "two" and sum(not one.heads for one in found) < 2:
            why += "; two phases have no room or time here"
        if recipe.progressive and any(one.views for one in found):
            why += "; kept maps have one size"
        if self.gauge.changed:
            why += "; steps in bfloat16 are quicker here"
        phases, at = [], self.watch.spent + warm * photos / quick
        for one in (stretches := split(found, network.method.phases)):
            at += one.seconds
            last = one is stretches[-1] or end == math.inf
            new = fresh and one is stretches[0]
            phases.append(self._phase(photos, one, 1.0 if last else min(1.0, at / end), new))
        return Plan.of(
            recipe,
            seed=self.seed,
            photos=photos,
            held_out=held,
            warm_views=warm,
            phases=phases,
            sampler=sampler,
            compile=compiled,
            bf16=self.gauge.changed,
            why=why,
        )

    def deadline(self, photos: int, held: int) -> float:
        """Seconds from the start by which the last step must be done: photos are then looked at once more."""
        budget = self.recipe.budget
        assert budget is not None
        return deadline(budget, held + min(known_within(budget, self.rate), photos), self.rate)

    def _size(self, network: Network) -> int:
        """Side of the views, in pixels."""
        if self.recipe.train_size is not None:
            return self.recipe.train_size
        if network.method.backbone.fixed:
            return network.size
        return round32(SMALLER * network.size)

    # -- what is done, one after the other

    def _asked(self, network: Network, photos: int, fresh: bool) -> tuple[list[Stretch], str]:
        """By epochs."""
        epochs = float(self.recipe.epochs or 1)
        why = f"{epochs:g} epoch{'s' * (epochs != 1)}, as asked for"
        found = [Stretch(self.cuts.last(network, FRESH), 0, epochs)]
        if self.recipe.views == "kept" and (kept := self.cuts.kept(network)):
            room = self._room(photos, entries(network, kept, self.size))
            if room >= network.method.views:
                found = [Stretch(kept, int(max(network.method.views, min(MOST_VIEWS, epochs, room))), epochs)]
        kept = self.cuts.kept(network) if self.recipe.phases == "two" and epochs >= 2 else ""
        if kept:
            first = max(1, round(FIRST * epochs))
            room = self._room(photos, entries(network, kept, self.size))
            least = network.method.views
            if room >= least:
                views = int(max(least, min(MOST_VIEWS, first, room)))
                found = [Stretch(kept, views, first), found[0]._replace(epochs=epochs - first)]
        if fresh:
            cut, views = self._deepest(network, photos)
            found.insert(0, Stretch(cut, views, HEADS_EPOCHS, heads=True, looks=1))
            why += f", after {HEADS_EPOCHS} of the new layers alone"
        return found, why

    def _within(self, network: Network, photos: int, end: float, fresh: bool) -> tuple[list[Stretch], str]:
        """By the clock. end: seconds from the start by which all must be done."""
        left = end - self.watch.spent
        if left < 10:
            return [], ""
        if self.gpu and self.recipe.batch is None:
            few = [batch for batch in BATCHES if batch <= max(BATCHES[0], photos // FEWEST_STEPS)]
            self.batch = self.gauge.batch = self.gauge.largest(network, few)
        first = self._heads(network, photos, HEADS * left) if fresh else []
        found, why = self._main(network, photos, end - sum(one.seconds for one in first))
        return ([*first, *found], why) if found else ([], "")

    def _heads(self, network: Network, photos: int, seconds: float) -> list[Stretch]:
        """New layers learn alone, if there is time for an epoch."""
        cut, views = self._deepest(network, photos)
        speed = self.gauge.speed(network, cut, heads=True)
        if views * photos / speed.lower > seconds / 2:
            views = min(views, speed.views)
        epochs = (seconds - speed.seconds(photos, 0, views)) * speed.step / photos
        if epochs < 1:
            return []
        epochs = min(HEADS_MOST, epochs)
        took, a_step = speed.seconds(photos, epochs, views), self._batch(photos) / speed.step
        return [Stretch(cut, views, epochs, took, a_step, heads=True, looks=1)]

    def _main(self, network: Network, photos: int, end: float) -> tuple[list[Stretch], str]:
        """Kept maps for short budgets, new views where there is time for enough of them; or one, then the other."""
        kept, two = self.cuts.kept(network), self.recipe.phases == "two"
        quick = self.gauge.speed(network, kept) if kept else Speed(math.inf, math.inf)
        reached = two or quick.seconds(photos, FEWEST_FRESH) < end - self.watch.spent
        if reached and not (kept and self.recipe.views == "kept"):
            cut = self.cuts.last(network, FRESH)
            slow = self.gauge.speed(network, cut)
            left = end - self.watch.spent
            an_epoch = (slow.seconds(photos, 1) - photos * slow.read) * ease(self.sides, self.size)
            a_step = an_epoch / photos * self._batch(photos)
            looks, looking = self._looks(slow, left)
            epochs = (left - looking - photos * slow.read) / an_epoch
            if kept and self.recipe.phases != "one":
                first = self._maps(photos, kept, quick, FIRST * left)
                rest = (left - first.seconds - looking) / an_epoch if first else 0.0
                if first and rest >= (self.fewest if two else FEWEST_FRESH):
                    why = f"{first.views} views a photo are kept as maps at first; {rest:.1f} epochs of new ones follow"
                    return [first, Stretch(cut, 0, rest, left - first.seconds, a_step, looks=looks)], why
            if epochs >= (FEWEST_FRESH if kept else self.fewest):
                why = f"{epochs:.1f} epochs of new views fit into the budget"
                return [Stretch(cut, 0, epochs, left, a_step, looks=looks)], why
        only = self._maps(photos, kept, quick, end - self.watch.spent) if kept else None
        if only is None:
            return [], ""
        return [only], f"too short for new views every epoch: {only.views} views a photo are kept as maps"

    def _may_compile(self, last: Stretch) -> bool:
        """Is it worth a trial? Growing views would be compiled one size after the other."""
        asked = self.gpu and self.recipe.compile == "auto"
        return asked and last.seconds > LONG and not (last.cut or self.sides)

    def _maps(self, photos: int, cut: str, speed: Speed, seconds: float) -> Stretch | None:
        """Maps are kept and learned from; None where there is no room or time for it."""
        room = self._room(photos, speed.entries)
        looks, looking = self._looks(speed, seconds)
        a_view = photos * (1 / speed.lower + REPEATS / (speed.views * speed.step))
        fit = (seconds - looking - photos * speed.read) / a_view
        views = int(max(speed.views, min(MOST_VIEWS, room, fit)))
        epochs = (seconds - looking - speed.seconds(photos, 0, views)) * speed.step / photos
        if epochs < self.fewest or room < speed.views:
            return None
        return Stretch(cut, views, epochs, seconds, self._batch(photos) / speed.step, looks=looks)

    def _looks(self, speed: Speed, seconds: float) -> tuple[int, float]:
        """How often to look at the held-out photos on the way, and the seconds that all looks take. What is before the
        cut sees them once."""
        a_look = self.held * self.larger / (ANSWER * speed.step)
        looks = int(min(LOOKS, max(1.0, LOOKING * seconds / max(a_look, 1e-9))))
        return looks, (looks + MORE_LOOKS) * a_look + self.held * (self.larger / speed.lower + speed.read)

    # -- where and with what

    def _deepest(self, network: Network, photos: int) -> tuple[str, int]:
        """The cut behind which new layers learn alone, and how many views are kept there ("" and 0: none)."""
        cut, least = self.cuts.deepest(network), network.method.views
        room = self._room(photos, entries(network, cut, self.size)) if cut else 0.0
        return (cut, int(max(least, min(HEADS_VIEWS, room)))) if room >= least else ("", 0)

    def _room(self, photos: int, entries: int) -> float:
        """Views of all photos for which there is room on the disk."""
        return self.recipe.cache_gb * 1e9 / (photos * max(1, entries) * 2)

    def _batch(self, photos: int) -> int:
        return max(1, min(self.batch, photos) // self.world) * self.world

    def _phase(self, photos: int, one: Stretch, until: float, fresh: bool) -> Phase:
        batch = self._batch(photos)
        an_epoch = max(1, photos // batch)
        steps = max(1, round(one.epochs * an_epoch))
        return Phase(
            cut=one.cut,
            heads=one.heads,
            fresh=fresh,
            views=one.views,
            size=self.size,
            rising=one.rising(self.sides),
            steps=steps,
            batch=batch,
            lr=self.recipe.lr,
            head_lr=self.recipe.head_lr,
            own=one.own,
            judge_every=max(1, -(-steps // one.looks)),
            save_every=max(1, round(SAVE_SECONDS / one.a_step)) if one.a_step else an_epoch,
            until=until,
        )
