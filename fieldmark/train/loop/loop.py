"""The training loop: one phase of fine-tuning, from any checkpoint to its last step.

All chance comes from (seed, step) and (seed, photo, epoch), so a run that was killed and resumed takes the same
steps as one that was not. Time decides only where a budget was given: then the number of steps that are left is
estimated anew at every look at held-out photos and every checkpoint, and the rates reach zero with the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from fieldmark.data.augment.mix import mix
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train import interrupts
from fieldmark.train.heads.warm import warm_new
from fieldmark.train.loop import checkpoint, kept
from fieldmark.train.loop.averages import Average, State, between, copied, instead, learned, put
from fieldmark.train.loop.batches import Batches
from fieldmark.train.loop.best import Best, Enough
from fieldmark.train.loop.feeds import Feed, maps_tensor
from fieldmark.train.loop.judge import Judge
from fieldmark.train.loop.stepper import Stepper
from fieldmark.train.loop.watch import Watch
from fieldmark.train.network import Network
from fieldmark.train.plan.plan import Plan
from fieldmark.train.processes import agreed

#: A new estimate of the steps that are left is taken where it differs by this share.
DIFFERENT = 0.03
#: After a checkpoint that took more than `QUICK` seconds there is none for so many times as long.
QUICK, APART = 1.0, 20.0
#: How far from the first weights to the last: the last are tried first.
SHARES = (1.0, 0.75, 0.5)


class Outcome(NamedTuple):
    """What a phase ended with. photos: seen in its steps; seconds: it took, waiting and judging included; stopped:
    why it ended."""

    best: Best
    photos: int
    seconds: float
    stopped: str


class Loop:
    """One phase of a plan.

    network: opened at the phase's cut; labels: [N] of the photos of ``feed.train``, as of a `Batch` (a coarser group is
    a class of its own to the sampler); held: [M] of ``feed.held``;
    folder: of the checkpoints; enough: do its weights do in the end? tell: progress ("step", done, total, photos a
    second), a row of the curve ("curve", row) and notes ("note", text).
    """

    def __init__(
        self,
        network: Network,
        feed: Feed,
        labels: np.ndarray,
        held: np.ndarray,
        plan: Plan,
        number: int,
        watch: Watch,
        folder: Path,
        tell: Callable[..., None],
        accelerator: Accelerator,
        enough: Enough = lambda *_: True,
    ):
        self.network, self.feed, self.plan, self.number = network, feed, plan, number
        self.phase, self.watch, self.folder, self.tell = plan.phases[number], watch, folder, tell
        self.labels, self.accelerator, self.enough = labels, accelerator, enough
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        device = accelerator.device
        self.module = network.module.to(device)
        self.learner = self.module.method
        network.begin(self.phase.own)
        self.module.train()
        network.freeze_statistics()
        self.targets = torch.from_numpy(labels).to(device)
        self.judge = Judge(network, feed, accelerator, held, plan.even)
        self.looked = 0.0  # seconds that its last look took
        self.batch = min(self.phase.batch, len(labels)) // self.world * self.world
        if not self.batch:
            raise FieldmarkError(f"{self.world} processes need a --batch of at least as many photos")
        self.stepper = Stepper(
            network,
            plan,
            self.phase,
            accelerator,
            self.batch // self.world,
            feed.train.photos.paths,
            tell,
        )
        self.average = Average(self.module, plan.average)  # several processes have moved the weights by now
        #: Classes, and groups above them where some photos have no class.
        self.many = max(network.classes, int(labels.max()) + 1)
        self.batches = Batches(feed, labels, plan, self.batch, self.learner.views, self.rank, self.world)
        self.total, self.step, self.progress = self.phase.steps, 0, 0.0
        self.best = Best()
        self.before, self.began = 0.0, self.watch.spent
        #: When the next checkpoint may be written, by the watch: large ones are far apart where epochs are short.
        self.due = 0.0

    # -- the run

    def run(self, resumed: checkpoint.Checkpoint | None = None) -> Outcome:
        """Train to the end of the phase, and leave the best weights in the network."""
        if resumed is not None:
            kept.unpack(self, resumed)
        else:
            first = self.phase.own == 0  # where nothing was learned yet, any view will do
            self.learner.prepare(self.phase.own, partial(self._photos, varied=first))
            self.module.train()
            self.network.freeze_statistics()
            if self.phase.fresh and self.learner.fitted:
                warm_new(self.learner, self._photos, self.module.criterion, self.plan.seed)
                for parameter in self.learner.head.parameters():  # GPUs may differ in the last bit
                    broadcast(parameter.data)
            self.average = Average(self.module, self.plan.average)  # of what it is now
            self.best.start = copied(learned(self.module))
            self._judge()
            self._save()
        self.first, self.began = self.step, self.watch.spent
        stopped = self._stop()
        try:
            if not stopped:
                for rows, images, boxes in self.batches.since(self.step):
                    self._train(rows, images, boxes)
                    if stopped := self._between():
                        break
        except KeyboardInterrupt:
            stopped = "interrupted"
        try:
            if self.step and self.best.rows[-1]["step"] != self.step:
                self._judge()
            if (mixture := self.best.mixture(2 if self.learner.judged else 1)) is not None:
                self._settle(mixture)
        except KeyboardInterrupt:  # then the best that was seen so far, where that can be told
            stopped = "interrupted"
            if not self.learner.judged:
                self.best.state = copied(self.average.state)
        put(self.module, self.best.state)
        return Outcome(self.best, self.photos, self.seconds, stopped)

    @property
    def photos(self) -> int:
        """Seen in the steps of this phase."""
        return self.step * self.batch

    @property
    def seconds(self) -> float:
        """Spent in this phase, by earlier processes too; waiting for photos and judging count."""
        return self.before + self.watch.spent - self.began

    def _settle(self, end: State) -> None:
        """End with these weights, or with some on the way to them; else with the best that was seen."""
        for share in SHARES:
            if share < 1 and agreed(self.watch.left < self.looked):
                return
            state = between(self.best.start, end, share)
            with instead(self.module, state):
                score = self.judge.score()
            enough, always = self.enough(score, self.photos), not self.learner.judged
            if self.best.settle(state, score, len(self.judge.held), enough, always):
                return

    def _photos(self, varied: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        """All photos that are learned, as (x, labels): a view of each or, not ``varied``, as they are."""
        device = self.accelerator.device
        for x, rows in self.batches.all(varied):
            yield x.to(device), self.targets[torch.from_numpy(rows).to(device)]

    def _train(self, rows: np.ndarray, images: Tensor, boxes: Tensor | None) -> None:
        """One optimiser step."""
        torch.manual_seed((self.plan.seed * 1_000_003 + self.step) * 64 + self.rank)
        device = self.accelerator.device
        images = images.to(device, non_blocking=True)
        boxes = None if boxes is None else boxes.to(device, non_blocking=True)
        targets = self.targets[torch.from_numpy(rows).to(device, non_blocking=True)]
        if self.plan.augment.mixes:  # behind a cut maps are mixed (Verma et al., Manifold Mixup, ICML 2019)
            images, targets = mix(images, targets, self.many, self.plan.augment, self.plan.seed, self.step)
        self.stepper(
            images,
            targets,
            boxes,
            rows=rows.tolist(),
            step=self.step,
            progress=self.progress,
            coarse=self.many > self.network.classes,
        )
        self.average.update(self.step)
        self.step += 1
        self.progress += (1 - self.progress) / max(1, self.total - self.step + 1)

    def example(self) -> Tensor:
        """A batch as it comes: [V B, ...], with nothing in it."""
        lower, side = self.feed.lower, self.phase.side(0)
        shape = (3, side, side) if lower is None else lower.shape
        return maps_tensor(np.zeros((self.stepper.micro * self.learner.views, *shape), np.float32))

    # -- between steps

    def _between(self) -> str:
        """Judge, save, and estimate what is left, where it is time to; a word where it is time to end."""
        self.tell("step", self.step, self.total, self.speed)
        interrupts.agree()
        judges, saves = (self.step % every == 0 for every in (self.phase.judge_every, self.phase.save_every))
        if judges and self.step < self.total:
            self._judge()
        if judges or saves:
            self._estimate()
        if saves and self.watch.spent >= self.due:
            self._save()
        return self._stop()

    def _stop(self) -> str:
        if self.step >= self.total:
            return "done"
        if self.plan.patience and self.best.stale >= self.plan.patience:
            return "no better for a while"
        if self.watch.deadline is not None and agreed(self._left() <= 0):
            return "the budget is spent"
        return ""

    def _left(self) -> float:
        """Seconds until the last step must be done: held-out photos are looked at twice after it."""
        return self.watch.left - 2 * self.looked

    def _estimate(self) -> None:
        """How many steps fit into what is left of the budget."""
        if self.watch.deadline is None or self.step == self.first:
            return
        passed, left = agreed((self.watch.spent - self.began, self._left()))
        left = max(1, self.phase.steps_left(self.batches.epoch_steps, self.first, self.step, passed, left))
        if abs(left - (self.total - self.step)) > DIFFERENT * (self.total - self.step):
            self.total = int(agreed(self.step + left))

    @property
    def speed(self) -> float:
        """Photos a second, of all processes, since this one began."""
        passed = self.watch.spent - self.began
        return (self.step - self.first) * self.batch / max(passed, 1e-9)

    def _judge(self) -> None:
        """The average's answers to the held-out photos: a row of the curve, and perhaps the new best."""
        self.feed.keep_held(self.rank, self.world)  # once: no look takes as long as the first
        begun = self.watch.spent
        with instead(self.module, self.average.state):
            score = self.judge.score()
        self.looked = self.watch.spent - begun
        self.best.consider(self.average.state, score)
        if self.step:
            self.best.remember(self.average.state)
        self.best.rows.append(
            {
                "phase": self.number,
                "step": self.step,
                "epoch": round(self.step / self.batches.epoch_steps, 3),
                "seconds": round(self.watch.spent, 2),
                "lr": self.stepper.optimizer.param_groups[0]["lr"] if self.step else 0.0,
                "held_out_accuracy": score.accuracy,
                "held_out_loss": score.nll,
                **{f"train_{name}": value for name, value in self.stepper.running.items()},
            }
        )
        self.tell("curve", self.best.rows[-1])

    # -- checkpoints

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        begun = self.watch.spent
        checkpoint.write(self.folder, self.step, *kept.pack(self))
        if (took := self.watch.spent - begun) > QUICK:
            self.due = self.watch.spent + APART * took
