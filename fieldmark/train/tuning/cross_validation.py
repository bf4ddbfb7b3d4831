"""Cross-validation of fine-tuning: for every fold a model that never saw it, judged on it.

The held-out photos of a run are few, and they choose among its weights. Here each photo is answered once, by a
model that had no use of it: that model holds out photos of its own from the other folds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from copy import copy
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from fieldmark.runtime.cache import atomic_write
from fieldmark.runtime.decision import softmax
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.evaluation import evaluation
from fieldmark.train import features, loggers, processes
from fieldmark.train.features import Describer
from fieldmark.train.held_out import hold_out
from fieldmark.train.instant import Looked, subset
from fieldmark.train.loop.watch import Watch
from fieldmark.train.recipe import Recipe
from fieldmark.train.trained import Trained, by_fold
from fieldmark.train.tuning.tuner import Finetune

#: What is kept of a fold: answers [n, C], and what is told of them.
ANSWERS, TOLD = "result.npy", "result.json"


def first_share(recipe: Recipe, spent: float) -> Recipe:
    """The recipe of the model itself: what is left of the budget is for it and one model a fold.

    spent: seconds since the process began.
    """
    if recipe.folds is None or recipe.budget is None:
        return recipe
    left = max(0.0, recipe.budget - spent)
    return recipe.model_copy(update={"budget": min(recipe.budget, spent + left / (recipe.folds + 1))})


def cross_validate(run: Finetune, recipe: Recipe, looked: Looked, trained: Trained | None) -> None:
    """Train and judge a model a fold, and put into ``trained`` (of the process that writes) what they answered.

    run: that made ``trained`` from ``looked``, by its share of ``recipe``. A fold that is done is kept in
    ``run.folder``, so a killed run does not do it again. An interrupt, or a training that fails, ends it with the
    folds that are done.
    """
    count = int(looked.fold.max()) + 1
    answers = np.full((len(looked.y), len(looked.classes)), np.nan, np.float32)
    told: list[dict[str, Any]] = []
    before = 0.0  # seconds of folds that an earlier process did
    why = ""
    for number in range(count):
        rows = np.flatnonzero(looked.fold == number)
        fold = Fold(run, looked, number, count)
        if (done := processes.agreed(fold.read())) is not None:
            before += done[1]["seconds"]
        else:
            spent = run.watch.spent + before
            try:
                done = fold.train(_share(recipe, spent, count - number, len(rows), run.planner.rate))
            except KeyboardInterrupt:
                done = None
            except FieldmarkError as error:
                done, why = None, f"fold {number + 1}: {error}; "
            if done is None:
                break
        answers[rows] = done[0]
        told.append(done[1])
    if trained is None:
        return
    if len(told) < count:
        trained.warnings.append(f"{why}cross-validation ended after {len(told)} of {count} folds")
    if not told:
        return
    rows = np.flatnonzero(np.isfinite(answers).all(1))
    y, fold_of = looked.y[rows], looked.fold[rows]
    found = evaluation(
        [looked.paths[i] for i in rows],
        [looked.classes[number] for number in y],
        answers[rows],
        looked.classes,
        hashes=[looked.content[i] for i in rows],
    )
    found.predictions = found.predictions.append_column("fold", [fold_of + 1])
    summary = by_fold(fold_of, answers[rows].argmax(1) == y)
    for own, one in zip(summary["folds"], told, strict=True):
        own |= one
    trained.cross_validation, trained.out_of_fold = summary, found


class Fold:
    """One fold: its training, and what is kept of it. number: from 0 to ``count`` - 1."""

    def __init__(self, run: Finetune, looked: Looked, number: int, count: int):
        self.run, self.looked, self.number, self.count = run, looked, number, count
        self.folder = run.folder / f"fold-{number + 1}"
        self.rows = np.flatnonzero(looked.fold == number)
        of = [looked.content, looked.fold.tolist(), looked.classes, run.coarse.content]
        self.key = hashlib.sha256(json.dumps(of).encode()).hexdigest()

    def train(self, recipe: Recipe) -> tuple[np.ndarray, dict[str, Any]] | None:
        """Probabilities [n, C] for the photos of the fold, and what is told of them; None: interrupted."""
        looked, run = self.looked, self.run
        others = np.flatnonzero(looked.fold != self.number)
        known = np.unique(looked.y[others])
        if len(known) < 2:
            raise FieldmarkError("the other folds have photos of one class only")
        part = subset(looked, others)
        part = replace(
            part, y=np.searchsorted(known, part.y), classes=[looked.classes[number] for number in known]
        )
        instant = copy(run.instant)
        instant.warnings, instant.tried, instant.report = [], [], self.report
        watch = Watch(run.watch.started)
        watch.before = -watch.spent  # the clock of this training starts now
        out, settings = run.folder.parent, asdict(run.settings) | {"fold": self.number + 1}
        names = recipe.log if run.accelerator.is_main_process else ()
        with loggers.opened(names, out, settings, self.note, self.folder.name) as logger:
            model = Finetune(
                instant,
                recipe,
                self.folder,
                watch,
                self.report,
                run.accelerator,
                logger,
                run.ranks,
                run.boxes,
                run.coarse.without(looked.groups[self.rows]),
            )
            trained = model.fit(part, hold_out(part, np.zeros(len(others), bool)))
        if model.stopped == "interrupted":
            return None
        done = None
        if trained is not None:  # of several processes one answers, and the others wait for it
            answers = np.zeros((len(self.rows), len(looked.classes)), np.float32)
            answers[:, known] = self._answers(trained)
            told = {
                "mode": trained.mode,
                "epochs": trained.chosen.get("epochs"),
                "seconds": round(watch.spent, 2),
            }
            self._keep(answers, told)
            done = answers, told
        return processes.agreed(done)

    def _answers(self, trained: Trained) -> np.ndarray:
        """Probabilities [n, classes of ``trained``]."""
        settings, z = trained.settings, features.select(self.looked.z, self.rows)
        if trained.mode == "finetune":
            paths = [self.looked.paths[i] for i in self.rows]
            describe = Describer(
                trained.graph,
                engine=settings.engine,
                precision=settings.precision,
                workers=settings.workers,
                cache=False,
            )
            z = describe(paths, lambda done: self.report("judging", done, len(paths))).descriptors
        return softmax(trained.head.logits(z), trained.head.temperature)

    def report(self, what: str, done: int, total: int | None = None, aside: str = "") -> None:
        """Progress, under the fold's name. Notes on the plan are not repeated for every fold."""
        if what:
            self.run.report(f"fold {self.number + 1} of {self.count}: {what}", done, total, aside)

    def note(self, line: str) -> None:
        self.run.report("", 0, None, f"fold {self.number + 1}: {line}")

    # -- what is kept

    def read(self) -> tuple[np.ndarray, dict[str, Any]] | None:
        """What `train` gave in a run that was killed; None where it did not, or of other photos."""
        try:
            told = json.loads((self.folder / TOLD).read_text(encoding="utf-8"))
            answers = np.load(self.folder / ANSWERS, allow_pickle=False)
        except (OSError, ValueError):
            return None
        right = told.pop("key", None) == self.key
        return (answers, told) if right else None

    def _keep(self, answers: np.ndarray, told: dict[str, Any]) -> None:
        """Keep the result, and nothing else: maps and weights take gigabytes."""
        self.folder.mkdir(
            parents=True, exist_ok=True
        )  # nothing is there where too few photos were left to train
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        np.save(self.folder / ANSWERS, answers, allow_pickle=False)
        with atomic_write(self.folder / TOLD) as file:
            file.write_text(json.dumps({"key": self.key, **told}), encoding="utf-8")


def _share(recipe: Recipe, spent: float, left: int, photos: int, rate: float) -> Recipe:
    """The recipe of a fold, where ``left`` of them are still to be trained. rate: photos a second that a model
    answers; spent: seconds of the run so far."""
    if recipe.budget is None:
        return recipe
    share = (recipe.budget - spent) / left - photos / rate
    return recipe.model_copy(update={"budget": max(1.0, share)})
