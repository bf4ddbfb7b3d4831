"""Training from scratch: a small network of which nothing is known before. The counterpart of `finetune`.

There is no instant model to compare with. Held-out photos choose the best weights on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field

from fieldmark.data.loader import Photos
from fieldmark.methods.cnn import Options
from fieldmark.nn.weights import Source
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train import imbalance, interrupts, loggers, processes
from fieldmark.train.bundle.finish import finished, known_within
from fieldmark.train.held_out import hold_out
from fieldmark.train.instant import Looked
from fieldmark.train.loop import checkpoint
from fieldmark.train.loop.loop import Loop, Outcome
from fieldmark.train.loop.telling import Teller
from fieldmark.train.loop.watch import Watch
from fieldmark.train.network import Network
from fieldmark.train.plan.measure import fitting
from fieldmark.train.plan.plan import PLAN, Phase, Plan, data_key, deadline
from fieldmark.train.settings import Settings
from fieldmark.train.textbook.network import ScratchNetwork, default_options, new_network
from fieldmark.train.textbook.photos import look
from fieldmark.train.textbook.pixels import PixelFeed
from fieldmark.train.textbook.recipe import BACKBONE, METHOD, MODE, FromScratch
from fieldmark.train.trained import Trained

#: Photos a step: of few photos, and of many.
MANY, BATCH, BATCH_MANY = 10_000, 64, 128
#: Looks at the held-out photos, at most one an epoch; checkpoints are at most so many steps apart.
LOOKS, SAVE = 20, 300
#: Photos a second that the finished model is taken to look at.
ANSWERED = 500.0


class ScratchPlan(Plan):
    """A `Plan` of one phase. options: of the network; shift: as a share of the side; tried: options compared."""

    options: Options
    shift: float = 0.0
    tried: list[dict[str, Any]] = Field(default_factory=list)


def train_from_scratch(
    settings: Settings,
    asked: FromScratch,
    catalog: Catalog,
    groups: np.ndarray,
    folder: Path,
    progress: Callable[..., None],
    started: float,
) -> Trained | None:
    """Train on ``catalog`` (its train and val photos); None in all processes but the one that writes.

    groups: [N], photos of one group stay together; folder: for what a killed run goes on from; started:
    ``time.time()`` when the process began.
    """
    return Scratch(settings, asked, folder, Watch(started), progress).fit(catalog, groups)


class Scratch:
    """One run. folder: of its plan and checkpoints; progress: told (what, done, total, more)."""

    def __init__(
        self,
        settings: Settings,
        asked: FromScratch,
        folder: Path,
        watch: Watch,
        progress: Callable[..., None],
    ):
        self.settings, self.asked, self.recipe = settings, asked, asked.recipe
        self.folder, self.watch, self.report, self.tell = folder, watch, progress, Teller(progress)
        self.accelerator = processes.accelerator("no" if self.recipe.amp == "auto" else self.recipe.amp)

    def fit(self, catalog: Catalog, groups: np.ndarray) -> Trained | None:
        looked, images, val, skipped = look(
            catalog,
            groups,
            self.settings,
            self.folder,
            lambda done: self.report("reading photos", done, len(catalog)),
        )
        held = hold_out(looked, val)
        rows = np.flatnonzero(~held), np.flatnonzero(held)
        y, y_held = looked.y[rows[0]], looked.y[rows[1]]
        if not len(y_held):
            raise FieldmarkError("no photo is left to judge by: give more photos a class")
        uneven = imbalance.named(self.recipe.imbalance, np.bincount(y, minlength=len(looked.classes)))
        preprocess = looked.graph.preprocess
        labels = [looked.classes[i] for i in looked.y]
        data = data_key(looked.content, labels, held.tolist(), looked.graph.key)
        asked = self.asked.key(self.settings.seed)
        saved = checkpoint.newest(self.folder / "phase-1")
        if self.accelerator.is_main_process and not (self.folder / PLAN).exists():
            saved = None
            made = self._plan(looked, images, rows, uneven)
            made.model_copy(update={"data": data, "asked": asked}).write(self.folder)
        plan = ScratchPlan.agreed(self.folder)
        assert plan is not None
        plan.check(data, asked, self.folder.parent)
        if saved is not None:
            self.watch.before += float(saved.state["spent"])
        if self.recipe.budget is not None:
            self.watch.deadline = self._deadline(len(y), len(y_held))
        for line in (plan.why, *plan.describe(), uneven.why):
            self.tell("note", line)
        network = self._network(plan.options, y, len(looked.classes), preprocess.size, uneven)
        photos = [
            Photos(
                [looked.paths[i] for i in part],
                [looked.content[i] for i in part],
                min_side=preprocess.min_side,
            )
            for part in rows
        ]
        feed = PixelFeed(
            images, rows, (photos[0], photos[1]), preprocess, plan.augment,
            shift=plan.shift, seed=plan.seed, workers=self.settings.workers,
        )  # fmt: skip
        self.tell.loop = loop = Loop(
            cast(Network, network),
            feed,
            y,
            y_held,
            plan,
            0,
            self.watch,
            self.folder / "phase-1",
            self.tell,
            self.accelerator,
        )
        names = self.recipe.log if self.accelerator.is_main_process else ()
        settings = plan.model_dump(mode="json", include={"seed", "options", "shift", "augment", "optimizer"})
        note = partial(self.tell, "note")
        with interrupts.noted(), loggers.opened(names, self.folder.parent, settings, note) as logger:
            self.tell.logger = logger
            outcome = loop.run(saved)
        if not self.accelerator.is_main_process:
            return None
        trained = self._finished(network, plan, looked, held)
        trained.skipped = skipped
        trained.chosen |= self._told(plan, outcome, saved, uneven)
        trained.curve, trained.tried = outcome.best.rows, plan.tried
        return trained

    def _plan(
        self,
        looked: Looked,
        images: np.ndarray,
        rows: tuple[np.ndarray, np.ndarray],
        uneven: imbalance.Imbalance,
    ) -> ScratchPlan:
        recipe, photos, size = self.recipe, len(rows[0]), looked.graph.preprocess.size
        options = default_options(size, self.asked.layers)
        tried: list[dict[str, Any]] = []
        if self.asked.search:
            from fieldmark.train.textbook.search import search

            options, tried = search(
                options,
                self.asked,
                (images[rows[0]], looked.y[rows[0]], looked.groups[rows[0]]),
                looked.graph.preprocess,
                self.settings,
                lambda done, total: self.report("comparing options", done, total),
            )
        batch = min(recipe.batch or (BATCH if photos < MANY else BATCH_MANY), photos)
        an_epoch = max(1, photos // batch)
        why = f"{options.compact} ({options.head} head of {options.hidden}), {photos} photos of {size} px"
        if recipe.epochs is not None:
            steps = max(1, round(recipe.epochs * photos / batch))
        else:
            y, classes = looked.y[rows[0]], len(looked.classes)
            network = self._network(options, y, classes, size, uneven)
            x = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
            network.module.to(self.accelerator.device)
            speed, _ = fitting(network, x, autocast=self.accelerator.autocast)
            left = self._deadline(photos, len(rows[1])) - self.watch.spent
            steps = int(left * speed / batch)
            if steps < an_epoch:
                raise FieldmarkError(
                    f"a budget of {recipe.budget:.0f} s leaves less than one epoch for {photos} photos: give more"
                )
            why += f"; {speed:.0f} photos a second"
        look = max(1, -(-steps // LOOKS))
        phase = Phase(
            size=size,
            steps=steps,
            batch=batch,
            lr=recipe.lr,
            head_lr=recipe.lr,
            judge_every=max(look, an_epoch),
            save_every=min(look, SAVE),
        )
        return ScratchPlan.of(
            recipe,
            seed=self.settings.seed,
            photos=photos,
            held_out=len(rows[1]),
            phases=[phase],
            sampler=uneven.sampler,
            even=uneven.evens,
            why=why,
            options=options,
            shift=self.asked.shift,
            tried=tried,
        )

    def _network(
        self, options: Options, y: np.ndarray, classes: int, size: int, uneven: imbalance.Imbalance
    ) -> ScratchNetwork:
        return new_network(options, y, classes, size, uneven, self.recipe, self.settings.seed)

    def _deadline(self, photos: int, held: int) -> float:
        budget = self.recipe.budget
        assert budget is not None
        return deadline(budget, held + min(known_within(budget, ANSWERED), photos), ANSWERED)

    def _finished(
        self, network: ScratchNetwork, plan: ScratchPlan, looked: Looked, held: np.ndarray
    ) -> Trained:
        """The recogniser; it answers as any other, so classes can be added."""
        options = plan.options.model_dump(mode="json")
        graph = replace(
            looked.graph,
            widths=(plan.options.hidden,),
            source=Source(BACKBONE, None, "", options),
        )
        looked = replace(looked, graph=graph, widths=[plan.options.hidden])
        model = network.finish()
        known = known_within(self.recipe.budget, ANSWERED)
        trained = finished(model, looked, held, METHOD, self.settings, self.folder, self.report, known)
        trained.mode = MODE
        return trained

    def _told(
        self,
        plan: ScratchPlan,
        outcome: Outcome,
        saved: checkpoint.Checkpoint | None,
        uneven: imbalance.Imbalance,
    ) -> dict[str, Any]:
        reached = outcome.best.score
        assert reached is not None
        return {
            "held_out": plan.held_out,
            "held_out_top1": reached.accuracy,
            "held_out_nll": reached.nll,
            "epochs": round(outcome.photos / plan.photos, 3),
            "photos_per_second": round(outcome.photos / max(outcome.seconds, 1e-9), 2),
            "stopped": outcome.stopped,
            "resumed_at_step": None if saved is None else saved.step,
            "plan": plan.model_dump(mode="json"),
            "imbalance": uneven.why,
        }
