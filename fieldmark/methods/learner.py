"""What can be trained: a network that describes photos, a linear head, and a step of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from torch import Tensor, nn

from fieldmark.losses.combine import Criterion
from fieldmark.methods.task import Batch
from fieldmark.nn.prototypes import Patches

#: All photos that are learned, a view of each, batch by batch: (x, labels).
Photos = Callable[[], Iterator[tuple[Tensor, Tensor]]]


class Learner(nn.Module):
    """Photos -> descriptor [B, d] -> logits [B, C] by ``head``.

    turns: optimiser steps for each batch, one call of `training_step` each; views: of each photo in a batch;
    phases: shares of the training, for methods that learn different parts one after the other (`begin`);
    selects: does it choose places of a photo by their rank, or by a threshold? Rounding may then turn a close choice;
    judged: do the answers to held-out photos say how good its weights are? Where they tell half of it, as of a
    detector, the last weights are kept, and no instant model stands in for it;
    fitted: may its head begin with what fits the descriptors that new layers give before they learn? Not where each of
    its weights has a meaning. projection: what it makes of a descriptor is the embedding.
    """

    turns: ClassVar[int] = 1
    views: ClassVar[int] = 1
    phases: ClassVar[tuple[float, ...]] = (1.0,)
    selects: ClassVar[bool] = False
    judged: ClassVar[bool] = True
    fitted: ClassVar[bool] = True
    head: nn.Module
    projection: nn.Module

    def describe(self, images: Tensor) -> Tensor:
        """images [B, 3, S, S] -> descriptors [B, d]."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, S, S] -> logits [B, C]."""
        return self.head(self.describe(images))

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """``loss`` with its gradient, ``logits`` [B, C] by which accuracy is told, and the parts of the loss by name.

        criterion: the loss that was asked for: (logits, targets, embedding) -> dict with ``loss``.
        """
        return self.judge(self.describe(batch.x), batch.targets, criterion)

    def judge(self, z: Tensor, targets: Tensor, criterion: Criterion) -> dict[str, Tensor]:
        """The criterion's losses and the logits, of descriptors [B, d]."""
        logits = self.head(z)
        embedding = self.projection(z) if criterion.needs_embedding else None
        return {**criterion(logits, targets, embedding), "logits": logits}

    def judge_known(self, z: Tensor, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """As `judge`, of the photos whose class is known; the loss counts by their share of the batch, so that the
        parts of a batch add up to the whole."""
        targets = batch.targets
        if not batch.coarse:
            return self.judge(z, targets, criterion)
        logits = self.head(z)
        embedding = self.projection(z) if criterion.needs_embedding else None
        known, own = batch.known(logits.shape[1])
        near = None if embedding is None else embedding[known]
        if known.any():
            losses = criterion(logits[known], own, near)
        else:  # what losses of the embedding hold is kept equal across processes
            none = 0.0 * logits.sum()
            losses = {"loss": none if near is None else none + criterion.of_embedding(near, own)}
        return {**losses, "loss": known.float().mean() * losses["loss"], "logits": logits}

    def begin(self, phase: int) -> None:
        """A phase of `phases` begins, or a killed run goes on in it: say which parameters learn."""

    def dropped(self) -> None:
        """The batch of the last calls of `training_step` counts nothing: it is left out, or taken again in parts."""

    def prepare(self, phase: int, photos: Photos) -> None:
        """Called once, at the start of a phase: for methods that must see the photos first.

        What it changes must be a buffer or learn in this phase: checkpoints hold nothing else.
        """

    def stepped(self) -> None:
        """Called after each optimiser step: a method may bring its weights back to what they must be."""

    def patches(self, photos: Photos) -> Patches | None:
        """What its prototypes are, where it has some: patches of photos. Column d of the head is prototype d's.

        photos: some of those that it learned from, the first of them, as they are; it may leave them unread.
        """
        return None

    def add_head(self, classes: int, embedding: int, rank: int | None = None) -> Any:
        """Make the head and the projection."""
        raise NotImplementedError
