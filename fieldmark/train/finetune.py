"""Fine-tuning: from the instant model to the best one that the time allows, and cross-validation if it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from fieldmark import methods
from fieldmark.data.boxes import Boxes
from fieldmark.methods.base import Method
from fieldmark.methods.descriptor import DescriptorGraph
from fieldmark.methods.task import Task
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError, ImageError, UsageError
from fieldmark.train import interrupts, loggers, processes
from fieldmark.train.bundle.prototypes import prototypes
from fieldmark.train.held_out import hold_out
from fieldmark.train.instant import Instant, Looked
from fieldmark.train.loop.watch import Watch
from fieldmark.train.recipe import Recipe
from fieldmark.train.trained import Trained
from fieldmark.train.tuning import start
from fieldmark.train.tuning.coarse import Coarse, Ranks
from fieldmark.train.tuning.cross_validation import cross_validate, first_share
from fieldmark.train.tuning.material import known_boxes
from fieldmark.train.tuning.tuner import Finetune

#: Share of a budget in which photos may be looked through for what prototypes are.
SHOWING = 0.01


def finetune(
    instant: Instant,
    recipe: Recipe,
    catalog: Catalog,
    groups: np.ndarray,
    graph: DescriptorGraph,
    folder: Path,
    progress: Callable[..., None],
    started: float,
    ranks: Ranks | None = None,
    coarse: Coarse | None = None,
) -> Trained | None:
    """Fine-tune on ``catalog`` (its train and val photos); None in all processes but the one that writes.

    graph: of one scale; folder: for what a killed run goes on from; started: ``time.time()`` when the process began;
    ranks, coarse: of `Finetune`.
    """
    known = _boxes(catalog, methods.card(instant.settings.method))
    accelerator = processes.accelerator(recipe.amp)
    torch.backends.cudnn.benchmark = True  # views have few sizes: a GPU finds each one's quickest kernel once
    _rehearse(instant.settings.method, recipe, catalog, graph, ranks)
    with accelerator.main_process_first():  # the others find what it saw in the cache
        looked = instant.look(catalog, groups, graph)
    if strange := {name for own in (known or {}).values() for name in own.labels if name} - set(
        looked.classes
    ):
        some = ", ".join(sorted(strange)[:3])
        instant.warnings.append(f"boxes of {some} are left out: no photo that is learned has such a label")
    splits = dict(zip(catalog.paths, catalog.splits, strict=True))
    held = hold_out(looked, np.array([splits[path] == "val" for path in looked.paths]))
    told = recipe.model_dump(mode="json", exclude_defaults=True) | asdict(instant.settings)
    names = recipe.log if accelerator.is_main_process else ()
    with interrupts.noted():
        with loggers.opened(names, folder.parent, told, lambda line: progress("", 0, None, line)) as logger:
            watch = Watch(started)
            share = first_share(recipe, watch.spent)
            run = Finetune(instant, share, folder, watch, progress, accelerator, logger, ranks, known, coarse)
            trained = run.fit(looked, held)
            if run.method is not None and trained is not None:
                _show_prototypes(run.method, trained, looked, ~held, recipe.budget)
        if recipe.folds is not None and run.stopped not in (None, "interrupted"):
            cross_validate(run, recipe, looked, trained)
    return trained


def _show_prototypes(
    method: Method, trained: Trained, looked: Looked, learned: np.ndarray, budget: float | None
) -> None:
    """Tell what the prototypes are, where the method has some. learned: [N] bool."""
    rows, time = np.flatnonzero(learned), math.inf if budget is None else SHOWING * budget
    try:
        trained.prototypes = prototypes(method, looked, rows, time, trained.settings.workers)
    except ImageError as error:
        trained.warnings.append(f"what the prototypes are is not told: {error}")


def _boxes(catalog: Catalog, card: methods.Card) -> dict[str, Boxes] | None:
    """The boxes of a catalog, for a method that has to do with them. Raises FieldmarkError where it needs some."""
    if "boxes" not in (*card.needs, *card.uses):
        return None
    known = known_boxes(catalog)
    if known is None and "boxes" in card.needs:
        raise FieldmarkError(
            f"{card.name} needs boxes of the things: give columns box_x, box_y, box_w, box_h (pixels) or boxes in the "
            "table of photos, or a table boxes.csv with a row a box beside it"
        )
    return known


def _rehearse(
    name: str, recipe: Recipe, catalog: Catalog, graph: DescriptorGraph, ranks: Ranks | None
) -> None:
    """Raise for a method that these settings, classes or this backbone do not suit, before any photo is looked at."""
    card = methods.card(name)
    if "labels" in card.needs and recipe.augment.mixes:
        raise UsageError(f"{name} needs one class a photo: leave --mixup and --cutmix out")
    if recipe.settings or {"tree", "transformer"} & set(card.needs):
        start.method_of(name, graph, Task.of(catalog.classes, ranks), recipe.settings)
