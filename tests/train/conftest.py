"""Tiny networks, plans and feeds, ready for a phase of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

torch.set_num_threads(1)  # tiny networks: threads only wait for each other
SIDE = 32


def make_method(name: str = "test_efficientnet", size: int = SIDE, rank: int | None = None) -> Any:
    """A method with random weights and batch norms that have seen something; the same for the same arguments."""
    from fieldmark.methods.descriptor import build
    from fieldmark.nn.weights import resolve

    made = build(resolve(name, pretrained=False), "isqrt_cov", size, ())
    torch.manual_seed(0)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    made.add_head(4, 6, rank)
    return made


def make_network(
    name: str = "test_efficientnet",
    size: int = SIDE,
    rank: int | None = None,
    loss: str = "cross_entropy",
    **more: Any,
) -> Any:
    """A `Network` of such a method."""
    from fieldmark.losses.combine import build as criterion
    from fieldmark.train.network import Network

    made = make_method(name, size, rank)
    return Network(made, criterion(loss, classes=4, embedding=6), **more)


@pytest.fixture(scope="session")
def method() -> Callable[..., Any]:
    return make_method


@pytest.fixture(scope="session")
def network() -> Callable[..., Any]:
    return make_network


@pytest.fixture(scope="session")
def some(photo_folder: Path) -> SimpleNamespace:
    """24 photos to learn from, 8 that judge, their labels, and how they are read."""
    from fieldmark.runtime.preprocess import Preprocess

    paths = sorted(photo_folder.rglob("*.jpg"))
    names = sorted({path.parent.name for path in paths})
    train = [path for path in paths if int(path.stem) < 6]
    held = [path for path in paths if int(path.stem) in (6, 7)]

    def y(photos: list[Path]) -> np.ndarray:
        return np.array([names.index(path.parent.name) for path in photos])

    preprocess = Preprocess(size=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bilinear")
    return SimpleNamespace(
        train=[str(path) for path in train],
        held=[str(path) for path in held],
        labels=y(train),
        held_labels=y(held),
        preprocess=preprocess,
    )


def make_plan(**changes: Any) -> Any:
    """Nine steps of eight photos. Names of a phase's fields go to the phase, others to the plan."""
    from fieldmark.train.plan.plan import Phase, Plan

    phase: dict[str, Any] = {
        "size": SIDE,
        "steps": 9,
        "batch": 8,
        "lr": 1e-3,
        "head_lr": 1e-2,
        "judge_every": 4,
        "save_every": 3,
    }
    whole: dict[str, Any] = {"seed": 3, "photos": 24, "held_out": 8}
    for name, value in changes.items():
        (phase if name in Phase.model_fields else whole)[name] = value
    return Plan(phases=[Phase(**phase)], **whole)


@pytest.fixture(scope="session")
def plan() -> Callable[..., Any]:
    return make_plan


@pytest.fixture(scope="session")
def cut(network: Callable[..., Any]) -> SimpleNamespace:
    """A place in the middle of the tiny network, and the compiled part before it."""
    from fieldmark.train.loop.feeds import Lower

    made = network()
    places = made.usable()
    name = places[len(places) // 2]
    return SimpleNamespace(name=name, lower=Lower(made.open(name), SIDE, 1), places=places)


@pytest.fixture
def loop(
    network: Callable[..., Any],
    plan: Callable[..., Any],
    some: SimpleNamespace,
    cut: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Any]:
    """``loop(folder, tell=..., watch=..., net={...}, **plan)``: a `Loop` that is made anew each time. Checkpoints are
    written when they are due, however busy the disk is."""
    monkeypatch.setattr("fieldmark.train.loop.loop.QUICK", float("inf"))
    from fieldmark.data.loader import Photos
    from fieldmark.train.loop.feeds import CachedFeed, Feed
    from fieldmark.train.loop.loop import Loop
    from fieldmark.train.loop.watch import Watch

    def make(
        folder: Path,
        tell: Callable[..., None] = lambda *_: None,
        watch: Any = None,
        net: dict[str, Any] | None = None,
        made: Any = None,
        **changes: Any,
    ) -> Any:
        made = made or network(**(net or {}))
        wanted = plan(**changes)
        phase = wanted.phases[0]
        common: dict[str, Any] = {"size": SIDE, "seed": wanted.seed, "workers": 1}
        if phase.cut:
            made.open(phase.cut)
            common |= {"lower": cut.lower, "lower_held": cut.lower}
        photos = (Photos(some.train), Photos(some.held))
        arguments = (*photos, some.preprocess, wanted.augment)
        if phase.views:
            feed: Any = CachedFeed(*arguments, views=phase.views, file=folder / "maps.f16", **common)
            feed.build()
        else:
            feed = Feed(*arguments, **common)
        watch = watch or Watch(0.0)
        places = (folder / "phase-1", tell, Accelerator(cpu=True))
        return Loop(made, feed, some.labels, some.held_labels, wanted, 0, watch, *places)

    return make


@pytest.fixture(scope="session")
def look(photo_folder: Path) -> Callable[..., Any]:
    """``look(each, held=(6, 7))``: an `Instant` and what it saw in ``each`` photos a class (or a number a class),
    without training."""
    from fieldmark.runtime.catalog import Catalog
    from fieldmark.train.instant import Instant
    from fieldmark.train.settings import Settings

    def looking(*each: int, **settings: Any) -> SimpleNamespace:
        catalog = Catalog.read(photo_folder)
        names = sorted({path.parent.name for path in photo_folder.rglob("*.jpg")})
        most = dict(zip(names, each * len(names) if len(each) == 1 else each, strict=False))
        rows = [int(Path(path).stem) < most.get(Path(path).parent.name, 0) for path in catalog.paths]
        catalog = catalog.select(np.array(rows))
        given: dict[str, Any] = {
            "mode": "finetune",
            "backbone": "test_efficientnet",
            "pretrained": False,
            "scales": (SIDE,),
            "workers": 1,
        }
        instant = Instant(Settings(**{**given, **settings}), lambda *_: None)
        graph = instant.graph(SIDE, [SIDE])
        looked = instant.look(catalog, np.arange(len(catalog)), graph)
        return SimpleNamespace(instant=instant, looked=looked, catalog=catalog)

    return looking
