"""From photos to answers with a model folder and no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.runtime import image
from fieldmark.runtime.bundle import GRAPH, Bundle
from fieldmark.runtime.decision import softmax, top
from fieldmark.runtime.engine import Precision, compile_graph, difference
from fieldmark.runtime.errors import FieldmarkError, ImageError, UsageError
from fieldmark.runtime.machine import cores
from fieldmark.runtime.results import Prediction
from fieldmark.runtime.stream import ordered_map

#: Largest difference from the golden answers that an engine may show in f32, relative to the largest answer.
TOLERANCE = 5e-3


@dataclass(frozen=True)
class Answer:
    """What the graph says of one photo: ``values`` [n] (None where ``error`` says why not) and its content hash."""

    source: Any
    values: np.ndarray | None
    content: str | None
    error: str | None = None


class Predictor:
    """A model folder, ready to answer.

    Each worker takes a photo from its file to its answer on one core. Engines are compiled when first needed.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: str = "auto",
        precision: Precision = "f32",
        workers: int | None = None,
    ):
        self.bundle = bundle
        self.preprocess = bundle.section.preprocess
        self.workers = workers or cores()
        serves = bundle.section.training.get("serves", "auto")  # where not all engines compute its graph
        self._asked = (serves if engine == "auto" else engine, precision)
        self._engines: dict[str, Any] = {}

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        engine: str = "auto",
        precision: Precision = "f32",
        workers: int | None = None,
    ) -> Predictor:
        """Open a model folder. Raises FieldmarkError in one line where it cannot serve."""
        return cls(Bundle(path), engine=engine, precision=precision, workers=workers)

    @property
    def classes(self) -> list[str]:
        return self.bundle.classes

    @property
    def temperature(self) -> float:
        return self.bundle.section.decision.temperature

    def engine(self, output: str = "logits") -> Any:
        """The engine that computes one output (``logits``, ``embedding`` or ``descriptor``)."""
        if output not in self._engines:
            name, precision = self._asked
            self._engines[output] = compile_graph(
                self.bundle.file(GRAPH),
                outputs=[output],
                engine=name,
                precision=precision,
                workers=self.workers,
            )
        return self._engines[output]

    def answers(self, sources: Iterable[Any], output: str = "logits") -> Iterator[Answer]:
        """One `Answer` a photo, in order, in constant memory. Sources: paths, bytes, pillow images, arrays."""
        engine, preprocess = self.engine(output), self.preprocess

        def one(source: Any) -> Answer:
            content = None
            try:
                data = image.read(source) if isinstance(source, str | Path) else source
                if isinstance(data, bytes):
                    content = image.content_hash(data)
                photo = image.load(data, preprocess.min_side)
                values = engine.run(preprocess(photo)[None], [output])[0][0]
            except ImageError as error:
                return Answer(source, None, content, str(error))
            return Answer(source, values, content)

        return ordered_map(one, sources, self.workers)

    def stream(self, sources: Iterable[Any]) -> Iterator[Prediction]:
        """One `Prediction` a photo, in order, in constant memory; unreadable photos carry their ``error``."""
        for number, answer in enumerate(self.answers(sources)):
            path = str(answer.source) if isinstance(answer.source, str | Path) else f"#{number}"
            if answer.values is None:
                yield Prediction(path, error=answer.error)
            else:
                probabilities = softmax(answer.values, self.temperature)
                yield Prediction(path, top(probabilities[None], self.classes)[0])

    def predict(self, photos: Any) -> list[Prediction]:
        """Answers for photos (or for one): paths, bytes, pillow images or RGB arrays [H, W, 3]."""
        return list(self.stream(_many(photos)))

    def predict_proba(self, photos: Any) -> np.ndarray:
        """Calibrated probabilities [N, C] in the order of ``classes``; a row of NaN where a photo is unreadable."""
        rows = [
            np.full(len(self.classes), np.nan, np.float32)
            if answer.values is None
            else softmax(answer.values, self.temperature)
            for answer in self.answers(_many(photos))
        ]
        return np.stack(rows) if rows else np.zeros((0, len(self.classes)), np.float32)

    def embed(self, photos: Any) -> np.ndarray:
        """Embeddings [N, E], rows of unit length; a row of NaN where a photo is unreadable."""
        width = self.bundle.section.embedding
        rows = [
            np.full(width, np.nan, np.float32) if answer.values is None else answer.values
            for answer in self.answers(_many(photos), "embedding")
        ]
        return np.stack(rows) if rows else np.zeros((0, width), np.float32)

    def check(self) -> float:
        """Compare the engine with the golden answers; returns the largest relative difference.

        Raises FieldmarkError where it computes something else than what was trained.
        """
        golden = self.bundle.golden()
        logits = np.concatenate(
            [
                self.engine().run(self.preprocess.normalise(one)[None], ["logits"])[0]
                for one in golden["images"]
            ]
        )
        selects = self.bundle.section.training.get("network", {}).get("selects", False)
        error = difference(logits, golden["logits"], selects)
        allowed = max(TOLERANCE, float(golden.get("rounding", 0.0)))
        if self._asked[1] == "f32" and error > allowed:
            raise FieldmarkError(
                f"{self.engine().name} does not compute what {self.bundle.path} was trained to "
                f"(golden answers differ by {error:.1e}): try another --engine"
            )
        return error


def _many(photos: Any) -> Sequence[Any]:
    """One photo or several, as a sequence."""
    if isinstance(photos, str | Path | bytes | bytearray | memoryview) or hasattr(photos, "convert"):
        return [photos]
    if isinstance(photos, np.ndarray) and photos.ndim in (2, 3):
        return [photos]
    if not isinstance(photos, Iterable):
        raise UsageError(
            f"{type(photos).__name__} is no photo: give a path, bytes, a picture, an array, or several"
        )
    return list(photos)
