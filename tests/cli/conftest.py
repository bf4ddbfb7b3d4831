"""A command line in this process, and a predictor that needs no model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fieldmark.cli import app
from fieldmark.runtime import decision
from fieldmark.runtime.results import Prediction


@dataclass
class Outcome:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of standard output."""
        return json.loads(self.out.rstrip("\n").rsplit("\n", 1)[-1])


@pytest.fixture
def fieldmark() -> Callable[..., Outcome]:
    """``fieldmark("predict", model, photos)``: run the command line here."""

    def call(*words: object) -> Outcome:
        result = CliRunner().invoke(app, [str(word) for word in words], prog_name="fieldmark")
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return call


class FakePredictor:
    """Three classes; scores come from the photo's name. Names with ``bad`` cannot be read."""

    classes = ("ant", "bee", "cat, or 'kitten'\n猫")
    seen: list[str] = []  # noqa: RUF012  # every photo that was looked at
    bundle = SimpleNamespace(key="0123456789ab")

    @classmethod
    def load(cls, path: Path, **_: Any) -> FakePredictor:
        from fieldmark.runtime.errors import FieldmarkError

        if not Path(path).is_dir():
            raise FieldmarkError(f"no model at {path}")
        return cls()

    def predict_proba(self, photos: Sequence[str]) -> np.ndarray:
        rows = []
        for photo in photos:
            self.seen.append(photo)
            dice = np.random.default_rng(abs(hash(Path(photo).name)) % 2**32)
            rows.append(decision.softmax(dice.normal(size=3) * 3).astype(np.float32))
            if "bad" in Path(photo).name:
                rows[-1][:] = np.nan
        return np.stack(rows)

    def stream(self, photos: Iterable[str]) -> Iterator[Prediction]:
        for photo in photos:
            scores = self.predict_proba([photo])
            if np.isnan(scores).any():
                yield Prediction(photo, error="file is truncated")
            else:
                yield Prediction(photo, decision.top(scores, self.classes)[0])

    def answers(self, photos: Iterable[str], output: str) -> Iterator[Any]:
        assert output == "embedding"
        for photo in photos:
            (vector,) = self.embed([photo])
            bad = bool(np.isnan(vector).any())
            error = "file is truncated" if bad else None
            yield SimpleNamespace(source=photo, values=None if bad else vector, error=error)

    def embed(self, photos: Sequence[str]) -> np.ndarray:
        scores = self.predict_proba(photos)
        return scores / np.linalg.norm(scores, axis=1, keepdims=True)


@pytest.fixture
def fake() -> type[FakePredictor]:
    return FakePredictor


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose predictor is `FakePredictor`."""
    module = ModuleType("fieldmark.runtime.predictor")
    module.Predictor = FakePredictor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fieldmark.runtime.predictor", module)
    monkeypatch.setattr(FakePredictor, "seen", [])
    folder = tmp_path / "run/model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder
