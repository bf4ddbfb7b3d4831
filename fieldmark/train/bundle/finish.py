"""From a trained network to what a model folder is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from fieldmark.methods.descriptor import OUTPUT, DescriptorGraph
from fieldmark.methods.learner import Learner
from fieldmark.nn.graph import export
from fieldmark.runtime.decision import fit_temperature
from fieldmark.train.bundle.golden import rendered
from fieldmark.train.features import Describer
from fieldmark.train.heads.head import Scaling, Subspace, choose, fit_head
from fieldmark.train.instant import Looked, spread
from fieldmark.train.network import read_head
from fieldmark.train.settings import Settings
from fieldmark.train.trained import Judged, Known, Trained

#: Photos whose descriptors are kept, for the embedding and for classes that are added later; within a budget not more
#: than can be looked at in this share of it, or this many.
KNOWN, KNOWN_TIME, KNOWN_LEAST = 1500, 0.05, 150
#: Pictures by which a graph is compared with its network: some more where the median counts.
COMPARED, COMPARED_SELECTING = 3, 5


def finished(
    method: Learner,
    looked: Looked,
    held: np.ndarray,
    name: str,
    settings: Settings,
    folder: Path,
    report: Callable[..., None],
    known: int = KNOWN,
) -> Trained:
    """The recogniser. method: `Network.finish`, called ``name``; held: [N] bool, photos that judge it; folder: for
    its graph; known: photos whose descriptors are kept, at most."""
    graph = _graph(method, looked.graph, name, folder)
    learned, judges = np.flatnonzero(~held), np.flatnonzero(held)
    kept = learned[spread(looked.y[learned], known, settings.seed)]
    rows = np.concatenate([judges, kept])
    describer = Describer(
        graph, engine=settings.engine, precision=settings.precision, workers=settings.workers, cache=False
    )
    described = describer(
        [looked.paths[i] for i in rows], lambda done: report("looking at photos again", done, len(rows))
    )
    z_held, z = described.descriptors[: len(judges)], described.descriptors[len(judges) :]
    y, classes = looked.y[kept], len(looked.classes)
    space = Subspace.fit(z, Scaling.fit(z, graph.widths), y, settings.seed)
    squared = choose(space, y, classes, looked.fold[kept])
    head = read_head(method, fit_head(z, space, y, classes, squared), 1.0)
    logits = head.logits(z_held)
    temperature = fit_temperature(logits, looked.y[judges])
    return Trained(
        settings=settings,
        graph=graph,
        classes=looked.classes,
        paths=looked.paths,
        content=looked.content,
        y=looked.y,
        known=Known(z, y, space, squared),
        judged=Judged("held out", judges, logits, temperature),
        head=replace(head, temperature=temperature),
        engine=describer.engine.name,
        mode="finetune",
    )


def known_within(budget: float | None, rate: float) -> int:
    """How many photos a finished model looks at again, ``rate`` a second, where all has to be done in ``budget``
    seconds."""
    return KNOWN if budget is None else min(KNOWN, max(KNOWN_LEAST, int(KNOWN_TIME * budget * rate)))


def _graph(method: Learner, before: DescriptorGraph, name: str, folder: Path) -> DescriptorGraph:
    """The trained network's own graph, beside its weights, in ``folder``."""
    path, weights = folder / "finetuned.onnx", folder / "finetuned.safetensors"
    state = {
        name: value.contiguous()
        for name, value in method.state_dict().items()
        if not name.startswith(("head.", "projection."))
    }
    data = save(state)
    weights.write_bytes(data)
    pictures = rendered(before.preprocess, COMPARED_SELECTING if method.selects else COMPARED)
    images = torch.from_numpy(before.preprocess.normalise(pictures))
    answer = method.forward
    method.forward = method.describe  # type: ignore[method-assign]
    exported = export(method, images, path, OUTPUT, method.selects)
    method.forward = answer  # type: ignore[method-assign]
    key = hashlib.sha256(json.dumps([before.key]).encode() + data).hexdigest()[:32]
    widths = tuple(getattr(method, "widths", before.widths))
    return replace(
        before,
        path=path,
        weights=weights,
        key=key,
        parity=exported.error,
        method=name,
        widths=widths,
        trained=True,
    )
