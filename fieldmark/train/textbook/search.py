"""Which layers suit these photos: candidates for the textbook network, compared by cross-validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from fieldmark.methods.cnn import Options, TextbookCNN, map_side
from fieldmark.runtime.preprocess import Preprocess
from fieldmark.train.instant import spread
from fieldmark.train.loop import optimizer
from fieldmark.train.settings import Settings
from fieldmark.train.textbook.folds import choose, product
from fieldmark.train.textbook.pixels import moved, to_tensor
from fieldmark.train.textbook.recipe import FromScratch

#: Photos that candidates are compared by, epochs of each training, photos a step.
MOST, EPOCHS, BATCH = 2000, 8, 64
#: What is tried where nothing was asked for, beside the size's own stages.
STAGES = ("16 32", "32 64", "2*32 2*64", "32 64 128")
DROPOUT = (0.0, 0.3)

Photos = tuple[np.ndarray, np.ndarray, np.ndarray]


def grid(base: Options, layers: dict[str, Any], size: int) -> list[Options]:
    """Candidates for photos of ``size`` pixels: ``base``, and other values of what is not among ``layers``."""
    values: dict[str, Any] = {}
    if "stages" not in layers:
        values["stages"] = [base.stages, *STAGES]
    if "dropout" not in layers:
        values["dropout"] = DROPOUT
    found = [base, *product(base, **values)] if values else [base]
    return [options for options in dict.fromkeys(found) if map_side(options, size) > 0]


def search(
    base: Options,
    asked: FromScratch,
    photos: Photos,
    preprocess: Preprocess,
    settings: Settings,
    progress: Callable[[int, int], None],
) -> tuple[Options, list[dict[str, Any]]]:
    """The smallest network that the folds cannot tell from the best, and a row a candidate.

    photos: pixels [N, S, S, 3], class numbers [N] and groups [N] of the photos that train.
    """
    rows = spread(photos[1], MOST, settings.seed)
    images, y, groups = (values[rows] for values in photos)
    classes, size = int(photos[1].max()) + 1, preprocess.size

    def score(options: Options, train: np.ndarray, val: np.ndarray) -> float:
        model = fit(options, asked, images, y, train, classes, preprocess, settings.seed)
        with torch.inference_mode():
            answers = torch.cat(
                [model(to_tensor(images[part], preprocess)) for part in np.array_split(val, 4)]
            )
        return (
            float((answers.argmax(1).numpy() == y[val]).mean()) if answers.isfinite().all() else float("nan")
        )

    choice = choose(grid(base, asked.layers, size), score, y, groups, settings.folds, settings.seed, progress)
    taken = min(choice.close, key=lambda options: weights(options, classes, size))
    table = [
        {
            **options_row(row.options),
            "parameters": weights(row.options, classes, size),
            "accuracy": row.mean,
            "spread": row.spread,
            "folds": settings.folds,
            "photos": len(y),
            "taken": row.options == taken,
        }
        for row in choice.rows
    ]
    return taken, table


def fit(
    options: Options,
    asked: FromScratch,
    images: np.ndarray,
    y: np.ndarray,
    train: np.ndarray,
    classes: int,
    preprocess: Preprocess,
    seed: int,
) -> TextbookCNN:
    """A network of these options after a few epochs on the rows ``train``, in eval mode."""
    model = TextbookCNN(options, classes, preprocess.size, torch.Generator().manual_seed(seed))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    recipe = asked.recipe
    steps_of = optimizer.make(
        recipe.optimizer,
        optimizer.groups(model, {}, lr=recipe.lr, head_lr=recipe.lr, weight_decay=recipe.weight_decay),
        recipe.momentum,
    )
    batch = min(recipe.batch or BATCH, len(train))
    an_epoch = len(train) // batch
    shift, flip = round(asked.shift * preprocess.size), recipe.augment.flip
    torch.manual_seed(seed)
    model.train()
    for epoch in range(EPOCHS):
        order = np.random.default_rng([seed, epoch]).permutation(train)
        for step in range(an_epoch):
            rows = order[step * batch : (step + 1) * batch]
            optimizer.set_rate(steps_of, (epoch * an_epoch + step) / (EPOCHS * an_epoch))
            views = moved(images[rows], rows, len(images), shift, flip, seed, epoch)
            logits = model(to_tensor(views, preprocess))
            loss = cross_entropy(logits, torch.from_numpy(y[rows]), label_smoothing=recipe.label_smoothing)
            steps_of.zero_grad()
            loss.backward()
            steps_of.step()
    return model.eval()


def weights(options: Options, classes: int, size: int) -> int:
    """Parameters of a network."""
    return sum(p.numel() for p in TextbookCNN(options, classes, size).parameters())


def options_row(options: Options) -> dict[str, Any]:
    """Options as a flat row of a table."""
    return {**options.model_dump(mode="json"), "stages": options.compact}
