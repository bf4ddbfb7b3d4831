"""Peer: fastai with its defaults, ``vision_learner`` and ``fine_tune``.

``PYTHON benchmarks/peers/fastai_peer.py FOLDER --weights FILE --out model.safetensors --seconds 600``

It needs an environment of its own, made once (fastai is no dependency of fieldmark):

    uv venv --python 3.11 fastai-venv
    uv pip install --python fastai-venv/bin/python fastai timm safetensors

``vision_learner(dls, timm's network)`` with ``Resize(224)`` as its quick start has it, batches of 64, one epoch of the
head and then as many of everything as fit (``fine_tune(epochs)``). Epochs are whole: the speed is measured ahead, on a
learner that is thrown away, and that time is not counted, nor is any validation done, both in its favour. Where not
even one epoch of everything fits, the head alone is trained for one epoch, which may take longer than the budget.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import shared

SIZE = 224
#: Batches timed in either phase, and how many before these are too early.
TIMED, IGNORED = 4, 2


def loaders(split: shared.Split, workers: int) -> Any:
    """fastai's loaders. It wants photos to validate on: a copy of some that are trained on, never looked at."""
    import pandas
    from fastai.vision.all import ImageDataLoaders, Resize

    rows = [(path, split.classes[label], False) for path, label in split.train]
    rows += [(path, name, True) for path, name, _ in rows[:64]]
    table = pandas.DataFrame(rows, columns=["path", "label", "valid"])
    return ImageDataLoaders.from_df(
        table, path="/", valid_col="valid", item_tfms=Resize(SIZE), num_workers=workers
    )


def learner(dls: Any, weights: Any) -> Any:
    """A new learner."""
    from fastai.vision.all import vision_learner

    return vision_learner(dls, shared.ARCHITECTURE, pretrained_cfg_overlay={"file": str(weights)})


@contextlib.contextmanager
def quick(learn: Any) -> Iterator[None]:
    """Within it the learner prints nothing and does not validate."""
    from fastai.vision.all import Callback, CancelValidException

    class Unvalidated(Callback):
        def before_validate(self) -> None:
            raise CancelValidException

    with learn.no_bar(), learn.no_logging(), learn.added_cbs([Unvalidated()]):
        yield


def speeds(dls: Any, weights: Any) -> tuple[float, float]:
    """Seconds of an epoch of the head, and of one of everything; a learner is spoilt for it."""
    from fastai.vision.all import Callback, CancelFitException

    class Times(Callback):
        def before_fit(self) -> None:
            self.ends: list[float] = []

        def after_batch(self) -> None:
            self.ends.append(time.time())
            if len(self.ends) == IGNORED + TIMED:
                raise CancelFitException

    spoilt, found = learner(dls, weights), []
    for prepare in (spoilt.freeze, spoilt.unfreeze):
        prepare()
        times = Times()
        with quick(spoilt):
            spoilt.fit_one_cycle(1, cbs=times)
        if len(times.ends) < 2:
            sys.exit("fewer than two batches of photos: nothing to measure the speed on")
        ends = times.ends[min(IGNORED, len(times.ends) - 2) :]
        found.append((ends[-1] - ends[0]) / (len(ends) - 1) * len(dls.train))
    return found[0], found[1]


def main() -> None:
    chosen = shared.parser(__doc__).parse_args()
    clock = shared.Clock(chosen.started, chosen.seconds)
    from fastai.vision.all import set_seed

    split = shared.read(chosen.photos, chosen.limit)
    set_seed(chosen.seed, reproducible=True)
    dls = loaders(split, chosen.workers)
    with clock:
        head, whole = speeds(dls, chosen.weights)
        set_seed(chosen.seed, reproducible=True)
    learn = learner(dls, chosen.weights)
    epochs = max(0, int((clock.left() - head) / whole))

    began = time.time()
    with quick(learn):
        if epochs:
            learn.fine_tune(epochs)
        else:
            learn.freeze()
            learn.fit_one_cycle(1)
    training = time.time() - began
    shared.save(learn.model, chosen.out)
    saved = clock.seconds()

    test = dls.test_dl([path for path, _ in split.test])
    with learn.no_bar():
        called = learn.get_preds(dl=test)[0].argmax(1).tolist()
    names = [dls.vocab[number] for number in called]
    right = sum(name == split.classes[label] for name, (_, label) in zip(names, split.test, strict=True))
    passes = (1 + epochs) * len(dls.train) * dls.train.bs
    settings = f"{SIZE} px, fine_tune({epochs}), batch {dls.train.bs}" if epochs else f"{SIZE} px, head only"
    shared.tell(clock, saved, training, passes, split, right, settings, ["timm", "fastai"])


if __name__ == "__main__":
    main()
