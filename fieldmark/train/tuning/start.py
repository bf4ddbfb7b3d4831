"""The network that training starts from: a method over a backbone, with a head and a loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fieldmark import methods
from fieldmark.losses.combine import Criterion
from fieldmark.losses.combine import build as build_criterion
from fieldmark.methods.base import Method
from fieldmark.methods.descriptor import DescriptorGraph
from fieldmark.methods.task import Task
from fieldmark.nn.backbone import Backbone
from fieldmark.train.heads.head import EMBEDDING, MOST_WEIGHTS
from fieldmark.train.imbalance import Imbalance
from fieldmark.train.network import Network
from fieldmark.train.recipe import Recipe


def criterion(recipe: Recipe, uneven: Imbalance, counts: np.ndarray, embedding: int) -> Criterion:
    """The loss that was asked for. counts: [C] photos of each class; embedding: its width."""
    weight, prior = uneven.weight(counts), uneven.log_prior(counts)
    return build_criterion(
        recipe.loss,
        classes=len(counts),
        embedding=embedding,
        weight=None if weight is None else torch.from_numpy(weight),
        label_smoothing=recipe.label_smoothing,
        log_prior=None if prior is None else torch.from_numpy(prior),
    )


def method_of(name: str, graph: DescriptorGraph, task: Task, settings: dict[str, Any]) -> Method:
    """A method with a head, over the backbone that ``graph`` was made of: at its scales, if the method is frozen in
    instant mode, at its size otherwise."""
    scales = graph.scales if methods.card(name).instant else ()
    method = methods.get(name)(Backbone(graph.source, graph.preprocess.size), scales, task, settings)
    width, classes = sum(method.widths), task.classes
    room = MOST_WEIGHTS // (width + classes)
    method.add_head(classes, EMBEDDING, room if width * classes > MOST_WEIGHTS else None)
    return method


def network(
    name: str,
    graph: DescriptorGraph,
    task: Task,
    recipe: Recipe,
    uneven: Imbalance,
    counts: np.ndarray,
    *,
    seed: int,
    depthwise: bool,
) -> Network:
    """The method called ``name`` as it is trained. counts: [C] photos of each class; depthwise: see `Network`."""
    torch.manual_seed(seed)  # layers of the method, the head and of losses begin with random weights
    method = method_of(name, graph, task, recipe.settings)
    loss = criterion(recipe, uneven, counts, EMBEDDING)
    return Network(method, loss, depthwise, pixels="pixels" in methods.card(name).needs)
