"""The Python face: a recogniser that is fitted, evaluated, asked, changed, saved and loaded."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldmark.runtime.errors import FieldmarkError, UsageError
from fieldmark.runtime.predictor import Predictor
from fieldmark.runtime.results import Evaluation, Prediction, Skipped

if TYPE_CHECKING:
    from fieldmark.explain.locate import Located

Report = Callable[..., None]


def _silent(what: str, done: int, total: int | None = None, aside: str = "") -> None:
    """Reports nothing."""


class Recognizer:
    """A recogniser of look-alikes.

    >>> r = Recognizer().fit("photos/")
    >>> r.evaluate("photos/", split="test").top1
    >>> r.predict(["a.jpg"])[0].label
    >>> r.save("model/")

    Settings are those of `fieldmark.train.settings.Settings` (``method``, ``backbone``, ``size``, ``seed``,
    ``engine``, ``workers``…) and, for fine-tuning, of `fieldmark.train.recipe.Recipe` (``budget="10m"``,
    ``epochs``, ``lr``…); ``report=False`` writes no report. With a budget or epochs, or a method with layers
    of its own, the mode is ``finetune``, else ``instant``; with ``method="cnn"`` it is ``scratch``.
    """

    def __init__(self, *, mode: str | None = None, report: bool = True, **settings: Any):
        if mode not in (None, "instant", "finetune", "scratch"):
            raise UsageError(f"no mode is called {mode!r}: there are instant, finetune and scratch")
        self._settings, self._with_report = {"mode": mode, **settings}, report
        self._predictor: Predictor | None = None
        self._home: tempfile.TemporaryDirectory[str] | None = None
        self._judged: tuple[Evaluation | None, str] = None, "all"  # the last evaluation, and of which split
        #: What `fit` measured: the fields of `fieldmark train --json`.
        self.run: dict[str, Any] = {}
        #: Photos that `fit` or `evaluate` left out, with the reason, and what it warned of.
        self.skipped: list[Skipped] = []
        self.warnings: list[str] = []

    # -- making one

    def fit(
        self,
        source: Any,
        out: str | Path | None = None,
        *,
        progress: Report = _silent,
        started: float | None = None,
    ) -> Recognizer:
        """Train on a folder, CSV, Parquet file or `Catalog`.

        out: the run folder (model/, run.json, split.csv, skipped.csv, report.html); without it the model lives
        in a temporary folder until it is saved. started: ``time.time()`` from which ``seconds`` counts.
        Raises FieldmarkError in one line where training is not possible.
        """
        from fieldmark.run import train

        if out is None:
            self._home = tempfile.TemporaryDirectory(prefix="fieldmark-")
            out = self._home.name
        run = train(source, Path(out), self._settings, self._with_report, progress, started or time.time())
        self.run, self.skipped, self.warnings = run.summary, run.skipped, run.warnings
        if run.summary:  # else another process wrote it
            self._open(Path(out) / "model")
        return self

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        engine: str = "auto",
        precision: str = "f32",
        workers: int | None = None,
    ) -> Recognizer:
        """Open a model folder, or the run folder that holds it. PyTorch is not needed."""
        path = Path(path)
        if not _is_model(path) and _is_model(path / "model"):
            path = path / "model"
        recognizer = cls(engine=engine, precision=precision, workers=workers)
        recognizer._open(path)
        return recognizer

    def save(self, path: str | Path) -> Path:
        """Write the model folder to ``path``, whole or not at all; a model that stood there is replaced."""
        import shutil

        from fieldmark.runtime.bundle import CARD
        from fieldmark.runtime.bundle_files import building

        bundle, target = self.predictor.bundle, Path(path)
        bundle.verify()
        if target.resolve() == bundle.path.resolve():
            return target
        with building(target) as folder:
            for name in (*bundle.section.files, "config.json"):
                shutil.copyfile(bundle.path / name, folder / name)
            if (bundle.path / CARD).is_file():
                shutil.copyfile(bundle.path / CARD, folder / CARD)
        return target

    def _open(self, path: Path) -> None:
        options = {k: self._settings[k] for k in ("engine", "precision", "workers") if k in self._settings}
        if options.get("engine") == "torch":  # which trains only
            options["engine"] = "auto"
        self._predictor = Predictor.load(path, **options)

    # -- asking it

    @property
    def predictor(self) -> Predictor:
        if self._predictor is None:
            raise FieldmarkError("this recogniser knows nothing yet: call fit, or Recognizer.load")
        return self._predictor

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of the scores."""
        return self.predictor.classes

    def predict(self, photos: Any) -> list[Prediction]:
        """One answer a photo: paths, bytes, pillow images or RGB arrays [H, W, 3]; one, or several."""
        return self.predictor.predict(photos)

    def predict_proba(self, photos: Any) -> np.ndarray:
        """Calibrated probabilities [N, C] in the order of ``classes``; NaN where a photo is unreadable."""
        return self.predictor.predict_proba(photos)

    def embed(self, photos: Any) -> np.ndarray:
        """Embeddings [N, E] of unit length; NaN where a photo is unreadable."""
        return self.predictor.embed(photos)

    def similar(self, photo: Any, among: Sequence[Any], k: int = 5) -> list[tuple[Any, float]]:
        """The ``k`` photos ``among`` these that are nearest to ``photo``, with their cosine, nearest first."""
        from fieldmark.evaluate.retrieval import similar

        among = list(among)
        gallery = self.embed(among)
        good = np.flatnonzero(np.isfinite(gallery).all(1))
        query = self.embed([photo])
        if not np.isfinite(query).all():
            raise FieldmarkError(f"{photo} cannot be read")
        if not len(good):
            return []
        index, cosine = similar(query, gallery[good], min(k, len(good)))
        return [(among[good[i]], float(c)) for i, c in zip(index[0], cosine[0], strict=True)]

    def locate(self, photos: Any, **options: Any) -> list[Located]:
        """Where the things in photos are, as `fieldmark locate` says it: paths, one or several. PyTorch is needed.

        options: ``most`` and ``threshold`` of `fieldmark.explain.locate.Locator`. Raises FieldmarkError for a model
        that does not show where it looks.
        """
        from fieldmark.explain.locate import Locator

        paths = [photos] if isinstance(photos, str | Path) else photos
        return list(Locator(self.predictor.bundle, **options)([str(path) for path in paths]))

    # -- judging it

    def evaluate(self, source: Any, split: str = "test", *, progress: Report = _silent) -> Evaluation:
        """Judge it on the photos of one split (``test``, ``val``, ``train`` or ``all``).

        The catalog's own split column decides, else what the model remembers of each photo's content. Photos
        that were trained on are left out and counted, unless they are what is asked for.
        ``warnings`` then says, in a line, where it cannot know.
        """
        from fieldmark.evaluate.judge import judge

        judged = judge(self.predictor, source, split, progress)
        self.warnings, self.skipped = judged.warnings, judged.skipped
        self._judged = judged.evaluation, split
        return judged.evaluation

    def report(self, evaluation: Evaluation, path: str | Path, **more: Any) -> Path:
        """Write an evaluation as one self-contained HTML page; of the last one it tells split and skipped photos.

        more: arguments of `fieldmark.report.page.write_report`, to say otherwise.
        """
        from fieldmark.report.page import write_report

        counts = Counter(evaluation.predictions["label"].to_pylist())
        content: dict[str, Any] = {
            "title": f"{len(self.classes)} classes",
            "settings": self.predictor.bundle.config.fieldmark.training,
            "data": {"judged": dict(counts)},
            "warnings": self.warnings,
            "split": "all",
        }
        if find_spec("timm"):  # else the page does not show where it looks
            from fieldmark.explain.attention import in_middles

            content["look"] = partial(in_middles, self.predictor.bundle)
        if evaluation is self._judged[0]:
            content |= {"skipped": self.skipped, "split": self._judged[1]}
        return write_report(path, evaluation=evaluation, **{**content, **more})

    # -- changing it

    def add_class(self, name: str, photos: Sequence[str | Path]) -> list[Skipped]:
        """Teach it one class more from photos of it; the old photos are not needed. Returns unreadable ones."""
        from fieldmark.train.bundle.classes import add_class

        with self._changed() as target:
            bad = add_class(self.predictor.bundle, target, name, [str(p) for p in photos], self.predictor)
        return [Skipped(str(answer.source), answer.error or "") for answer in bad]

    def remove_class(self, name: str) -> None:
        """Make it forget one class."""
        from fieldmark.train.bundle.classes import remove_class

        with self._changed() as target:
            remove_class(self.predictor.bundle, target, name)

    @contextlib.contextmanager
    def _changed(self) -> Iterator[Path]:
        """A fresh place for the changed model, opened afterwards; the model it came from is left as it is."""
        home = tempfile.TemporaryDirectory(prefix="fieldmark-")
        target = Path(home.name) / "model"
        try:
            yield target
            self._open(target)
        except BaseException:
            home.cleanup()
            raise
        self._home = home


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file()
