"""A soft head to start fine-tuning from: logistic regression on descriptors of photos and of views of them.

The descriptors are those of the frozen method, or, where new layers lie before the descriptor, what these make of the
photos while they are still random: random features tell much apart, and what learns from then on has a gradient that
says something.

The ridge head of instant mode tells its own photos apart by tiny differences: networks that start from it are
torn by its large weights. And behind a head that is sure of all its photos features hardly move: it is made softer
(as Ren et al. advise where features must change: "How to prepare your task head for finetuning", ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fieldmark.data.augment import Augment
from fieldmark.data.loader import Loader, Photos
from fieldmark.losses.combine import Criterion
from fieldmark.methods.descriptor import OUTPUT, DescriptorGraph
from fieldmark.methods.learner import Learner
from fieldmark.methods.learner import Photos as Views
from fieldmark.runtime.engine import compile_graph
from fieldmark.runtime.machine import cores
from fieldmark.runtime.stream import ordered_map

EPOCHS, BATCH, LR, WEIGHT_DECAY = 12, 64, 1e-2, 0.01
#: Few photos are seen in more epochs: so many steps, at least.
STEPS = 100
#: Share of its weights that the head keeps: better than all and than a tenth of them, on photos of grocery_store that
#: were kept out of train; than all of them on those of cub100, too.
SOFT = 1 / 3
#: Shorter descriptors of new layers are made so long: it says how far a step moves the logits.
LENGTH = 3.0
#: Views are drawn as if for these epochs, which training does not reach.
FIRST_EPOCH = 1_000_000


def descriptors_of_views(
    graph: DescriptorGraph,
    photos: Photos,
    settings: Augment,
    views: int,
    *,
    seed: int,
    workers: int | None,
    progress: Callable[[int, int], None],
) -> np.ndarray:
    """Descriptors of ``views`` augmented views of every photo: [views, N, d] float16."""
    engine = compile_graph(graph.path, outputs=[OUTPUT], workers=workers or cores())
    loader = Loader(photos, graph.preprocess, settings, seed=seed, workers=0)
    n = len(photos)
    out = np.empty((views, n, sum(graph.widths)), np.float16)

    def one(number: int) -> np.ndarray:
        view, row = divmod(number, n)
        (image,) = loader.batches([(np.array([row]), FIRST_EPOCH + view)])
        return engine.run(image.contiguous().numpy(), [OUTPUT])[0][0]

    for number, z in enumerate(ordered_map(one, range(views * n), workers or cores())):
        out[divmod(number, n)] = z
        if number % 64 == 63 or number + 1 == views * n:
            progress(number + 1, views * n)
    return out


def warm_head(
    head: nn.Module, z: list[np.ndarray], labels: np.ndarray, criterion: Criterion, seed: int
) -> None:
    """Train ``head`` [d -> C], in place; its last layer starts from zero.

    z: descriptors [N, d] of the same photos, one array a view; labels: [N]; criterion: its losses of
    the logits count, those of the embedding wait for training.
    """
    torch.manual_seed(seed)
    last = last_of(head)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.AdamW(head.parameters(), LR, weight_decay=WEIGHT_DECAY, fused=True)
    batch = min(BATCH, len(labels))
    epochs = max(EPOCHS, -(-STEPS // (len(labels) // batch)))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(labels) // batch))
    targets, chance = torch.from_numpy(labels), np.random.default_rng(seed)
    for _ in range(epochs):
        order = chance.permutation(len(labels))
        view = chance.integers(0, len(z), len(labels))
        for at in range(0, len(order) - batch + 1, batch):
            rows = order[at : at + batch]
            x = torch.from_numpy(np.stack([z[view[i]][i] for i in rows]).astype(np.float32))
            loss = criterion.of_logits(head(x), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(SOFT)
    optimizer.zero_grad()  # else the first step of training would add this gradient to its own


def warm_new(learner: Learner, views: Views, criterion: Criterion, seed: int) -> None:
    """Train the head, in place, on what the method's new layers make of the views before they learn.

    Their batch norms begin with the statistics of all the views: those of the last few batches, which they keep while
    they learn, would be far from right for as long. What they give may be far from 0 and nearly alike, so the head is
    trained on what is left without the mean, and at least of length `LENGTH`.
    """
    modes = [(one, one.training) for one in learner.modules()]
    norms = [one for one, trains in modes if trains and isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d)]
    momentum = [one.momentum for one in norms]
    for one, _ in modes:
        one.training = one in norms
    for one in norms:
        one.reset_running_stats()
        one.momentum = None  # the mean of all batches
    with torch.no_grad():
        seen = [(learner.describe(x).float().cpu(), labels.cpu()) for x, labels in views()]
    for one, before in zip(norms, momentum, strict=True):
        one.momentum = before
    z, labels = (torch.cat(some).numpy() for some in zip(*seen, strict=True))
    known = labels < last_of(learner.head).out_features
    device, mean = next(learner.head.parameters()).device, z[known].mean(0)
    z = z - mean
    length = min(1.0, float(np.linalg.norm(z[known], axis=1).mean()) / LENGTH) or 1.0
    warm_head(learner.head.cpu(), [z[known] / length], labels[known], criterion.cpu(), seed)
    take(learner.head, mean, length)
    learner.head.to(device)
    criterion.to(device)
    for one, training in modes:
        one.training = training


@torch.no_grad()
def take(head: nn.Module, mean: np.ndarray, length: float) -> None:
    """From now on a head that was trained on (z - mean) / length takes z itself. mean: [d]."""
    last, first = last_of(head), head[0] if isinstance(head, nn.Sequential) else head
    first.weight.div_(length)  # type: ignore[union-attr, operator]
    last.bias.sub_(head(torch.from_numpy(mean)[None])[0] - last.bias)


def last_of(head: nn.Module) -> nn.Linear:
    """The layer of a head that gives the logits."""
    last = head[-1] if isinstance(head, nn.Sequential) else head
    assert isinstance(last, nn.Linear)
    return last
