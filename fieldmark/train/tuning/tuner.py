"""One fine-tuning run: from the instant model to the best one that the time allows.

Some photos are held out. The instant model of the others is the measure: what the plan's phases end with is
taken unless it answers fewer of the held-out photos.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from fieldmark import methods
from fieldmark.data.boxes import Boxes
from fieldmark.data.loader import Loader, Photos
from fieldmark.methods.base import Method
from fieldmark.methods.task import Task
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train import imbalance, interrupts, loggers, processes
from fieldmark.train.bundle.finish import finished, known_within
from fieldmark.train.heads.head import fit_head
from fieldmark.train.heads.warm import descriptors_of_views, warm_head
from fieldmark.train.instant import Instant, Looked
from fieldmark.train.loop.best import Enough, Score
from fieldmark.train.loop.telling import Teller
from fieldmark.train.loop.watch import Watch
from fieldmark.train.network import Network
from fieldmark.train.plan.measure import slower
from fieldmark.train.plan.plan import PLAN, Plan
from fieldmark.train.plan.planner import Planner
from fieldmark.train.recipe import Recipe
from fieldmark.train.trained import Trained
from fieldmark.train.tuning import start
from fieldmark.train.tuning.coarse import Coarse, Ranks, Taught
from fieldmark.train.tuning.course import Course
from fieldmark.train.tuning.material import Material
from fieldmark.train.tuning.phases import newest

#: After so many epochs a model has the benefit of the doubt: held-out photos must show that it is worse than the
#: instant one. Before, a single photo less decides.
GROWN = 5.0


class Finetune:
    """One fine-tuning run.

    folder: of its plan, checkpoints and kept maps; progress: as `Instant` has it; ranks: of the classes; boxes: path ->
    the things' boxes as shares of the photo's sides, where known; coarse: photos without a class, for methods that use
    ranks.
    """

    def __init__(
        self,
        instant: Instant,
        recipe: Recipe,
        folder: Path,
        watch: Watch,
        progress: Callable[..., None],
        accelerator: Accelerator,
        logger: loggers.Logger = loggers.NOTHING,
        ranks: Ranks | None = None,
        boxes: Mapping[str, Boxes] | None = None,
        coarse: Coarse | None = None,
    ):
        self.ranks, self.boxes, self.card = ranks or {}, boxes, methods.card(instant.settings.method)
        self.coarse = coarse or Coarse()
        #: The method whose frozen descriptor it begins with; none where it has layers that know nothing yet.
        self.frozen = None if recipe.settings else methods.frozen(self.card.name)
        if not methods.get(self.card.name).judged:
            recipe = recipe.model_copy(update={"floor": False})
        self.instant, self.recipe, self.folder, self.watch = instant, recipe, folder, watch
        self.settings, self.report, self.tell = instant.settings, progress, Teller(progress, logger)
        self.accelerator = accelerator
        self.gpu = accelerator.device.type != "cpu"
        #: What was trained; none where the instant model is given.
        self.method: Method | None = None
        #: Why its last phase ended; none where no phase was begun.
        self.stopped: str | None = None
        #: The step of the checkpoint that it went on from.
        self.resumed_at: int | None = None

    def fit(self, looked: Looked, held: np.ndarray) -> Trained | None:
        """None in all processes but the one that writes. held: [N] bool, the photos that are kept out of the
        weights."""
        if not held.any():
            return self._instant(looked, "too few photos for any to judge fine-tuning")
        coarse = self.coarse.taught(looked.classes, self.ranks, looked.groups[held])
        material = Material.of(looked, held, self.boxes, coarse)
        part, y_held = material.part, material.y_held
        space, choice, _ = self.instant.select(part)
        ridge = fit_head(part.z, space, part.y, len(looked.classes), choice)
        network, uneven = self._network(material)
        measure = self._score(ridge.logits(looked.z[held]), y_held, uneven)
        enough = self._enough(measure, len(material.y))
        rate = self.instant.rate(looked)  # of the frozen graph, which may be the method's own
        self.planner = self._planner(rate if self.frozen == looked.graph.method else rate / slower(network))
        asked = self.recipe.key(self.card.name, self.settings.seed)
        with interrupts.alone():
            if self.accelerator.is_main_process and not (self.folder / PLAN).exists():
                fresh = self.frozen is None
                made = self.planner.plan(
                    network, len(material.y), len(y_held), uneven.sampler, fresh, self._loader(material)
                )
                if made is not None:
                    own = {"data": material.key, "asked": asked, "even": uneven.evens}
                    made.model_copy(update=own).write(self.folder)
        if (plan := Plan.agreed(self.folder)) is None:
            return self._instant(looked, "the budget is too small for fine-tuning", measure)
        plan.check(material.key, asked, self.folder.parent)
        if plan.bf16 and not self.gpu and self.accelerator.mixed_precision == "no":
            self.accelerator = processes.accelerator("bf16")
        number, saved, spent = newest(self.folder)
        if processes.agreed(spent) != spent:  # they would take different steps
            raise FieldmarkError(f"not all processes see the checkpoints in {self.folder}: share the folder")
        if self.recipe.budget is not None:
            self.watch.deadline = self.planner.deadline(len(part.y), len(y_held))
        for line in filter(None, (plan.why, *plan.describe(), uneven.why, coarse.why)):
            self.tell("note", line)
        try:
            if spent is None:
                with interrupts.alone():
                    self._warm_up(network, plan, part, material.train)
            else:
                self.resumed_at = 0 if saved is None else saved.step
                self.watch.before += spent
                where = f"at step {saved.step}" if saved is not None else f"after phase {number}"
                self.tell("note", f"resumed {where}, by the plan that it was begun with")
            course = Course(
                network,
                plan,
                material,
                self.folder,
                self.watch,
                self.tell,
                self.accelerator,
                enough=enough,
                workers=self.settings.workers,
            )
            outcomes = course.run(number, saved)
        except KeyboardInterrupt:  # the loop catches its own
            if spent is not None:  # what an earlier process did stays, for --resume
                raise
            self.stopped = "interrupted"
            return self._instant(looked, "interrupted before the first step", measure)
        self.stopped = outcomes[-1].stopped
        if not self.accelerator.is_main_process:
            return None
        reached = outcomes[-1].best.score
        assert reached is not None
        seen, seconds = sum(o.photos for o in outcomes), sum(o.seconds for o in outcomes)
        what, trained = "fine-tuning", None
        if enough(reached, seen):
            trained = self._finished(network, looked, held, coarse)
            if self.recipe.tta:  # until now it was judged without
                reached = self._score(trained.judged.logits, y_held, uneven)
                what = "fine-tuning with --tta"
        if not enough(reached, seen):
            why = f"{what} was worse on held-out photos ({reached.accuracy:.1%}, log loss {reached.nll:.3f})"
            trained = self._instant(looked, why, measure)
        assert trained is not None
        trained.curve = [row for outcome in outcomes for row in outcome.best.rows]
        trained.chosen |= {
            "held_out": len(y_held),
            "coarse": len(trained.coarse),
            "held_out_top1": reached.accuracy,
            "held_out_top1_instant": measure.accuracy,
            "held_out_nll": reached.nll,
            "held_out_nll_instant": measure.nll,
            "epochs": round(seen / len(material.y), 3),
            "photos_per_second": round(seen / max(seconds, 1e-9), 2),
            "stopped": self.stopped,
            "resumed_at_step": self.resumed_at,
            "plan": plan.model_dump(mode="json"),
            "imbalance": uneven.why,
        }
        return trained

    def _score(self, logits: np.ndarray, y: np.ndarray, uneven: imbalance.Imbalance) -> Score:
        return Score.of(torch.from_numpy(logits), torch.from_numpy(y), uneven.evens)

    def _planner(self, rate: float) -> Planner:
        return Planner(
            self.recipe,
            self.settings.seed,
            self.watch,
            rate,
            gpu=self.gpu,
            workers=self.settings.workers,
            world=self.accelerator.num_processes,
            device=self.accelerator.device,
            autocast=self.accelerator.autocast,
            other=processes.short_steps(self.accelerator) if self.recipe.amp == "auto" else None,
        )

    def _loader(self, material: Material) -> Callable[[int], Loader]:
        """Side in pixels -> views of the photos that are learned, as they will come."""
        spec, augment = material.looked.graph.preprocess, self.recipe.augment
        workers = self.settings.workers
        return lambda side: Loader(material.train, spec, augment, size=side, workers=workers)

    def _enough(self, measure: Score, photos: int) -> Enough:
        """Is a score good enough to be given? Not where it is worse than the measure. photos: of an epoch."""

        def enough(score: Score, seen: int) -> bool:
            if not self.recipe.floor:
                return True
            if seen >= GROWN * photos:
                return not score.worse(measure)
            return score.value[0] >= measure.value[0]

        return enough

    def _warm_up(self, network: Network, plan: Plan, part: Looked, photos: Photos) -> None:
        """A head to start with, from the descriptors of instant mode and of some augmented views."""
        if self.frozen is None:  # its first phase trains all new layers
            return
        z = [part.z] if self.frozen == part.graph.method else []
        if plan.warm_views:
            size, what = plan.phases[0].size, "warming up the head"
            graph = self.instant.graph(size, [size], self.frozen)
            z.extend(
                descriptors_of_views(
                    graph,
                    photos,
                    plan.augment,
                    plan.warm_views,
                    seed=plan.seed,
                    workers=self.settings.workers,
                    progress=lambda done, total: self.report(what, done, total),
                )
            )
        if z:
            warm_head(network.method.head, z, part.y, network.criterion, plan.seed)

    def _network(self, material: Material) -> tuple[Network, imbalance.Imbalance]:
        """The network, whole, and how it answers to uneven classes."""
        recipe, looked = self.recipe, material.looked
        uneven = imbalance.named(recipe.imbalance, material.counts)
        uneven = imbalance.with_pairs(uneven, recipe.loss, self.card.sampler)
        network = start.network(
            self.settings.method,
            looked.graph,
            Task.of(looked.classes, self.ranks),
            recipe,
            uneven,
            material.counts,
            seed=self.settings.seed,
            depthwise=self.gpu if recipe.depthwise is None else recipe.depthwise,
        )
        return network, uneven

    def _finished(self, network: Network, looked: Looked, held: np.ndarray, coarse: Taught) -> Trained:
        """The model of what was trained."""
        self.method = method = network.finish()
        method.tta = self.recipe.tta
        known = known_within(self.recipe.budget, self.planner.rate)
        name = self.settings.method
        trained = finished(method, looked, held, name, self.settings, self.folder, self.report, known)
        if not self.card.instant or self.recipe.settings:
            trained.network = {
                "task": method.task.to_dict(),
                "settings": method.options.model_dump(mode="json"),
                "tta": method.tta,
                "selects": method.selects,
            }
        trained.computed, trained.skipped = self.instant.computed, self.instant.skipped + coarse.left
        trained.coarse = dict(zip(coarse.photos.paths, coarse.photos.content, strict=True))
        trained.seconds, trained.tried = self.instant.seconds, self.instant.tried
        trained.warnings += self.instant.warnings
        return trained

    def _instant(self, looked: Looked, why: str, measure: Score | None = None) -> Trained | None:
        """The instant model of all photos, as `fit` gives it. measure: of the one without the held-out photos."""
        if not self.accelerator.is_main_process:
            return None
        self.method = None
        trained = self.instant.learn(looked)
        right = "" if measure is None else f" ({measure.accuracy:.1%} of held-out photos)"
        trained.warnings.append(f"{why}: this is the instant model{right}")
        if self.stopped is not None:
            trained.chosen["stopped"] = self.stopped
        return trained
