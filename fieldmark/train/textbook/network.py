"""The textbook network as it is trained, and what it is made of where nobody says."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fieldmark.losses.combine import Criterion
from fieldmark.methods.cnn import Options, TextbookCNN
from fieldmark.train.imbalance import Imbalance
from fieldmark.train.network import Training, forget_counts
from fieldmark.train.recipe import Recipe
from fieldmark.train.tuning.start import criterion

#: Stages by the photos' side in pixels, at most; and for larger ones.
STAGES = ((16, "2*32 2*64"), (32, "32 64"), (64, "32 64 128"))
LARGEST = "32/2 64 128 128"


class ScratchNetwork:
    """A new network as `Loop` takes one: everything learns at one rate, and so do batch norm's statistics."""

    def __init__(self, model: TextbookCNN, criterion: Criterion):
        self.model, self.classes = model, model.classes
        self.module = Training(model, criterion)

    def depth(self) -> dict[str, int]:
        """Nothing lies deep: all of it learns at the head's rate."""
        return {}

    def begin(self, own: int) -> None:
        """There is one phase only, and all of it learns."""

    def freeze_statistics(self) -> None:
        """They are learned."""

    def finish(self) -> TextbookCNN:
        """The network as it is saved."""
        forget_counts(self.model)
        return self.model.cpu().eval().requires_grad_(False)


def default_options(size: int, layers: dict[str, Any]) -> Options:
    """A network for photos of ``size`` pixels, with the layers that were asked for."""
    stages = next((stages for most, stages in STAGES if size <= most), LARGEST)
    return Options.of({"stages": stages, **layers})


def new_network(
    options: Options, y: np.ndarray, classes: int, size: int, uneven: Imbalance, recipe: Recipe, seed: int
) -> ScratchNetwork:
    """A network with weights drawn by ``seed``, and its loss.

    y: [n] class numbers of the photos that train it; size: of the photos, in pixels.
    """
    counts = np.bincount(y, minlength=classes)
    torch.manual_seed(seed)  # losses may begin with random weights
    loss = criterion(recipe, uneven, counts, options.hidden)
    model = TextbookCNN(options, classes, size, torch.Generator().manual_seed(seed))
    return ScratchNetwork(model.to(memory_format=torch.channels_last), loss)  # type: ignore[call-overload]
