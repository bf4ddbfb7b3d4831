"""Instant mode: a frozen backbone looks at every photo once, and a head is fitted in seconds.

The steps, in order: descriptors of all photos (cached), which scales and parts of them to use (by out-of-fold
predictions), the head and its temperature. `fieldmark.train.bundle.write` puts the result into a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fieldmark import methods
from fieldmark.data.split import folds
from fieldmark.methods.descriptor import DescriptorGraph, descriptor_graph
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.results import Skipped
from fieldmark.train import features
from fieldmark.train.features import Described, Describer
from fieldmark.train.heads.head import Choice, Scaling, Subspace, choose, fit_head
from fieldmark.train.settings import Settings
from fieldmark.train.trained import Judged, Known, Trained, by_fold

#: Photos on which a further scale is tried before it is computed for all.
TRIAL = 400
#: Photos by which the parts of the descriptor are chosen.
JUDGES = 800
#: A further scale costs half again as long, in training and for every answer: it must lower the out-of-fold
#: loss by this share, and by this many standard errors.
GAIN, ERRORS = 0.15, 2.0
#: Where so many are right at one scale, there is nothing that a second could add.
ENOUGH = 0.99
#: Photos that tell how quick it is.
TIMED = 32
#: By method: the weights of a descriptor's parts that are tried.
PARTS = {"isqrt_cov": ((1.0, 1.0, 1.0), (1.0, 0.0, 1.0))}

Report = Callable[[str, int, int | None], None]


@dataclass
class Looked:
    """What the frozen graph saw in all readable photos.

    z: [N, d] descriptors; widths: of their parts; y: [N] class numbers; fold: [N] of the out-of-fold predictions;
    groups: [N], photos of one group stay together.
    """

    graph: DescriptorGraph
    classes: list[str]
    paths: list[str]
    content: list[str]
    y: np.ndarray
    groups: np.ndarray
    fold: np.ndarray
    z: np.ndarray
    widths: list[int]


class Instant:
    """One training run of instant mode."""

    def __init__(self, settings: Settings, report: Report):
        methods.card(settings.method)
        self.settings, self.report = settings, report
        self.warnings: list[str] = []
        self.seconds: dict[str, float] = {}
        self.tried: list[dict[str, Any]] = []
        self.skipped: list[Skipped] = []
        self.computed = 0
        self._rate: float | None = None

    def graph(self, size: int | None, scales: Sequence[int], method: str | None = None) -> DescriptorGraph:
        """The frozen graph of a method (none: the one asked for or, where that must learn first, the default)."""
        s = self.settings
        asked = s.method if methods.card(s.method).instant else methods.DEFAULT_METHOD
        return descriptor_graph(
            s.backbone,
            method or asked,
            size=size,
            scales=scales,
            preprocess=s.preprocess,
            offline=s.offline,
            pretrained=s.pretrained,
        )

    def describe(self, graph: DescriptorGraph, paths: Sequence[str], what: str) -> Described:
        describer = self._describer(graph, self.settings.cache)
        self.engine = describer.engine.name
        described = describer(paths, lambda done: self.report(what, done, len(paths)))
        self.seconds["describe"] = self.seconds.get("describe", 0.0) + described.seconds
        self.computed += described.computed
        if describer.cache_error and not any("cache" in line for line in self.warnings):
            self.warnings.append(f"the cache cannot be written ({describer.cache_error}): it is done without")
        return described

    def _describer(self, graph: DescriptorGraph, cache: bool) -> Describer:
        s = self.settings
        return Describer(
            graph,
            engine=s.engine,
            precision=s.precision,  # type: ignore[arg-type]
            workers=s.workers,
            cache=cache,
        )

    def rate(self, looked: Looked) -> float:
        """Photos a second that it looks at; where most of them were in the cache, some are looked at again."""
        if self._rate is None:
            computed, seconds = self.computed, self.seconds["describe"]
            if computed < TIMED:
                again = self._describer(looked.graph, cache=False)(looked.paths[:TIMED])
                computed, seconds = again.computed, again.seconds
            self._rate = max(1, computed) / max(seconds, 1e-9)
        return self._rate

    def fit(self, catalog: Catalog, groups: np.ndarray, graph: DescriptorGraph) -> Trained:
        """Train on all photos of ``catalog`` (its train and val photos), starting from the graph of one scale.

        groups: [N] numbers; photos of one group (copies, bursts, one specimen) stay in one fold.
        """
        looked = self.look(catalog, groups, graph)
        self.report("choosing", 0, None)
        if not self.settings.scales:
            looked = self._try_scale(looked)
        return self.learn(looked)

    def look(self, catalog: Catalog, groups: np.ndarray, graph: DescriptorGraph) -> Looked:
        """Descriptors of all photos that can be read."""
        first = self.describe(graph, catalog.paths, "looking at photos")
        self.skipped = [Skipped(catalog.paths[row], reason) for row, reason in first.errors.items()]
        good = np.array([row not in first.errors for row in range(len(catalog))], bool)
        z = first.descriptors
        if not good.all():
            catalog, groups = catalog.select(good), groups[good]
            z = features.select(first.descriptors, np.flatnonzero(good))
        content = [name for name, keep in zip(first.content, good, strict=True) if keep]
        labels = np.asarray(catalog.labels, object)
        classes = sorted(set(labels))
        if len(classes) < 2:
            raise FieldmarkError(
                f"only {len(classes)} class has readable photos to train on"
                f"{f' ({classes[0]})' if classes else ''}: at least two are needed"
            )
        y = np.searchsorted(np.asarray(classes, object), labels)
        counts = np.bincount(y, minlength=len(classes))
        single = [classes[i] for i in np.flatnonzero(counts == 1)]
        if single:
            self.warnings.append(
                f"{len(single)} {'class has' if len(single) == 1 else 'classes have'} one photo to learn from: "
                + ", ".join(map(repr, single[:5]))
                + (" …" if len(single) > 5 else "")
            )
        fold = _folds(y, groups, self.settings)
        return Looked(graph, classes, catalog.paths, content, y, groups, fold, z, list(graph.widths))

    def learn(self, looked: Looked) -> Trained:
        """The head, from descriptors."""
        y, z, n = looked.y, looked.z, len(looked.classes)
        space, choice, squared = self.select(looked)
        return Trained(
            settings=self.settings,
            graph=looked.graph,
            classes=looked.classes,
            paths=looked.paths,
            content=looked.content,
            y=y,
            known=Known(z, y, space, squared),
            judged=Judged("out of fold", np.arange(len(y)), choice.logits, choice.temperature),
            head=fit_head(z, space, y, n, choice),
            engine=self.engine,
            computed=self.computed,
            seconds=self.seconds,
            tried=self.tried,
            chosen={
                "scales": list(looked.graph.scales),
                "ridge": choice.ridge,
                "temperature": choice.temperature,
                "out_of_fold_top1": choice.accuracy,
                "out_of_fold_nll": choice.nll,
            },
            skipped=self.skipped,
            warnings=self.warnings,
            cross_validation=by_fold(looked.fold, choice.logits.argmax(1) == y),
        )

    def _try_scale(self, looked: Looked) -> Looked:
        """Add the backbone's own scale beside the larger one, where out-of-fold predictions ask for it."""
        graph, z, y, fold, widths = looked.graph, looked.z, looked.y, looked.fold, looked.widths
        size, n = graph.preprocess.size, len(looked.classes)
        if graph.native >= size:
            return looked
        rows = spread(y, TRIAL, self.settings.seed)
        one = _loss(z[rows], widths, y[rows], fold[rows], n)
        if one.accuracy > ENOUGH:
            self._note([size], None, one, len(rows), True)
            return looked
        small = self.graph(size, [graph.native])
        trial = self.describe(small, [looked.paths[i] for i in rows], "trying another scale")
        if trial.errors:
            return looked
        both = np.concatenate([z[rows], trial.descriptors], axis=1)
        two = _loss(both, widths * 2, y[rows], fold[rows], n)
        take = _gain(one, two) > ERRORS and one.nll - two.nll > GAIN * one.nll
        for scales, choice in (([size], one), ([size, graph.native], two)):
            self._note(scales, None, choice, len(rows), take == (len(scales) == 2))
        if not take:
            return looked
        rest = self.describe(small, looked.paths, "looking again, smaller")
        if rest.errors:
            return looked
        both = features.beside(z, rest.descriptors)
        return replace(looked, graph=self.graph(size, [size, graph.native]), z=both, widths=widths * 2)

    def select(self, looked: Looked) -> tuple[Subspace, Choice, Choice]:
        """Which parts of the descriptor to use: judged on a spread of photos, then fitted on all."""
        z, y, fold, widths = looked.z, looked.y, looked.fold, looked.widths
        n, scales = len(looked.classes), len(looked.graph.scales)
        scaling = Scaling.fit(z, widths)
        candidates = PARTS.get(looked.graph.method, ((1.0,) * (len(widths) // scales),))
        best = candidates[0]
        if len(candidates) > 1:
            rows = spread(y, JUDGES, self.settings.seed)
            tried = [_loss(z[rows], widths, y[rows], fold[rows], n, parts * scales) for parts in candidates]
            # Few photos favour short descriptors, more so than all photos will: the first, which has all parts,
            # gives way only to what is better beyond doubt.
            better = [i for i, other in enumerate(tried) if _gain(tried[0], other) > ERRORS]
            taken = min(better, key=lambda i: tried[i].nll, default=0)
            best = candidates[taken]
            for number, (choice, parts) in enumerate(zip(tried, candidates, strict=True)):
                self._note(None, parts, choice, len(rows), number == taken)
        space = Subspace.fit(z, scaling.weighted(best * scales, widths), y, self.settings.seed)
        choice = squared = choose(space, y, n, fold)
        if self.settings.loss == "cross_entropy":
            from fieldmark.train.heads.softmax_head import choose_softmax

            choice = choose_softmax(space, y, n, fold, self.settings.label_smoothing)
        self._note(None, best, choice, len(y), True)
        return space, choice, squared

    def _note(
        self,
        scales: list[int] | None,
        parts: tuple[float, ...] | None,
        choice: Choice,
        photos: int,
        taken: bool,
    ) -> None:
        self.tried.append(
            {
                "scales": scales,
                "parts": list(parts) if parts else None,
                "photos": photos,
                "nll": round(choice.nll, 5),
                "accuracy": round(choice.accuracy, 5),
                "taken": taken,
            }
        )


def subset(looked: Looked, rows: np.ndarray) -> Looked:
    """Some of the photos [M]."""
    return replace(
        looked,
        paths=[looked.paths[i] for i in rows],
        content=[looked.content[i] for i in rows],
        y=looked.y[rows],
        groups=looked.groups[rows],
        fold=looked.fold[rows],
        z=features.select(looked.z, rows),
    )


def _gain(one: Choice, other: Choice) -> float:
    """By how many standard errors the out-of-fold loss falls from ``one`` to ``other``, photo by photo."""
    gain = one.per_photo - other.per_photo
    return float(gain.mean() / (gain.std() / np.sqrt(len(gain)) + 1e-9))


def _loss(
    z: np.ndarray,
    widths: Sequence[int],
    y: np.ndarray,
    fold: np.ndarray,
    n: int,
    parts: Sequence[float] | None = None,
) -> Choice:
    scaling = Scaling.fit(z, widths)
    if parts is not None:
        scaling = scaling.weighted(parts, widths)
    return choose(Subspace.fit(z, scaling, y), y, n, fold)


def _folds(y: np.ndarray, groups: np.ndarray, settings: Settings) -> np.ndarray:
    """Fold of each photo [N]."""
    k = min(settings.folds, len(np.unique(groups)))
    if k < 2:
        raise FieldmarkError("all photos belong to one group: nothing is left to judge a fit by")
    return folds(y, groups, k, settings.seed)


def spread(y: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most ``most`` row numbers, spread over the classes as they are."""
    if len(y) <= most:
        return np.arange(len(y))
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    return np.sort(order[np.linspace(0, len(y) - 1, most).round().astype(int)])
