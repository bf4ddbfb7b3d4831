"""Judging a model on photos it may be judged on: which of a catalog's photos those are, and their answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.decision import softmax
from fieldmark.runtime.errors import FieldmarkError, UsageError
from fieldmark.runtime.evaluation import UNREADABLE, evaluation
from fieldmark.runtime.predictor import Predictor
from fieldmark.runtime.results import Evaluation, Skipped

TRAINED_ON = "used in training"
OTHER_SPLIT = "in another split"
#: Splits whose photos shaped the model: the head is refitted on val once val has chosen its settings.
FITTED = ("train", "val")


@dataclass(frozen=True)
class Judged:
    """An evaluation, the photos left out (unreadable, or refused by the catalog), and what the reader must know."""

    evaluation: Evaluation
    skipped: list[Skipped]
    warnings: list[str]


class NothingLeftError(FieldmarkError):
    """No photo may be judged; ``skipped`` are those that cannot be read."""

    def __init__(self, message: str, skipped: list[Skipped]):
        super().__init__(message)
        self.skipped = skipped


def judge(
    predictor: Predictor, source: Any, split: str = "test", progress: Callable[..., None] | None = None
) -> Judged:
    """Evaluate on the photos of ``split``: ``train``, ``val``, ``test`` or ``all``.

    The catalog's split column decides; without one, the split that each photo's content had in training; a
    photo the model has never seen belongs to ``test``. Photos trained on are left out of ``test`` and ``all``.
    Raises NothingLeftError where nothing is left to judge.
    """
    if split not in ("train", "val", "test", "all"):
        raise UsageError(f"no split is called {split!r}: choose train, val, test or all")
    catalog = Catalog.read(source)
    warnings: list[str] = []
    if catalog.has_split and split != "all":
        chosen = catalog.of_split(split)
        if not len(chosen):
            there = ", ".join(f"{n} {name}" for name, n in Counter(filter(None, catalog.splits)).items())
            raise FieldmarkError(f"{source} has no {split} photos; it has {there or 'none with a split'}")
    else:
        chosen = catalog
    known = predictor.bundle.splits()
    # Only test and all must be free of what was trained on; train and val are asked for by name.
    wanted = (split,) if split in FITTED else ("test", None)
    rows, content, skipped = [], [], list(catalog.skipped)
    left_out = Counter(item.reason for item in skipped)
    answers = []
    recognised = 0
    chosen_paths = chosen.paths
    for row, answer in enumerate(predictor.answers(chosen_paths)):
        seen = known.get(answer.content or "")
        recognised += seen is not None
        if progress:
            progress("evaluating", row + 1, len(chosen))
        if answer.values is None:
            skipped.append(Skipped(chosen_paths[row], answer.error or UNREADABLE))
            left_out[UNREADABLE] += 1
        elif seen in FITTED and split not in FITTED:
            left_out[TRAINED_ON] += 1
        elif not catalog.has_split and seen not in wanted:
            left_out[OTHER_SPLIT] += 1
        else:
            rows.append(row)
            content.append(answer.content or "")
            answers.append(answer.values)
    if not known and split not in FITTED:
        warnings.append("the model does not tell which photos it was trained on: none could be left out")
    elif not catalog.has_split and not recognised:
        warnings.append(
            f"{source} has no split, and the model has met none of these photos by content: "
            "it cannot know whether it was trained on other copies of them"
        )
    if split in FITTED:
        warnings.append(
            f"the model was fitted on {split} photos: these scores are better than new photos will get"
        )
    if not answers:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
        raise NothingLeftError(
            f"nothing to evaluate in {source}: no photo is left ({why or 'it is empty'})", skipped
        )
    labels = chosen.labels
    try:
        result = evaluation(
            [chosen_paths[row] for row in rows],
            [labels[row] for row in rows],
            softmax(np.stack(answers), predictor.temperature),
            predictor.classes,
            left_out,
            content,
        )
    except FieldmarkError as error:  # labels that the model does not know
        raise NothingLeftError(str(error), skipped) from None
    unseen = sorted({str(labels[row]) for row in rows if labels[row]} - set(predictor.classes))
    if unseen:
        names = ", ".join(map(repr, unseen[:5])) + (" …" if len(unseen) > 5 else "")
        are = "label was" if len(unseen) == 1 else "labels were"
        warnings.append(f"{len(unseen)} {are} never seen in training, their photos are left out: {names}")
    return Judged(result, skipped, warnings)
