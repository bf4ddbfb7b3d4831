"""Real photos: the default settings learn, are calibrated, and stay above floors that leave room for chance."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fieldmark import Catalog, Recognizer

pytestmark = pytest.mark.real


def some(source: Path, train: int, test: int) -> Catalog:
    """The first photos of each class and split."""
    if not source.is_dir():
        pytest.skip(f"no {source.name} here")
    catalog = Catalog.read(source)
    seen: Counter[tuple[str | None, bool]] = Counter()
    rows = []
    for row, (label, split) in enumerate(zip(catalog.labels, catalog.splits, strict=True)):
        seen[label, split == "test"] += 1
        if seen[label, split == "test"] <= (test if split == "test" else train):
            rows.append(row)
    return catalog.select(np.array(rows))


@pytest.mark.parametrize(
    ("name", "train", "test", "size", "floor"),
    [("steel_defects", 15, 8, 224, 0.90), ("cub10_parts", 12, 8, 256, 0.70)],
)
def test_accuracy(data_root: Path, name: str, train: int, test: int, size: int, floor: float) -> None:
    catalog = some(data_root / name, train, test)
    recognizer = Recognizer(size=size, report=False).fit(catalog)
    found = recognizer.evaluate(catalog)
    assert found.top1 == recognizer.run["top1"] >= floor
    assert found.n >= 0.9 * test * len(catalog.classes) and found.macro_f1 >= floor - 0.05
    assert found.ece < 0.2 and found.nll < 1
    guess = recognizer.predictor.bundle.metrics()["out_of_fold"]["top1"]
    assert abs(guess - found.top1) < 0.2, "out-of-fold predictions say beforehand how good it is"
    assert recognizer.predictor.check() < 1e-4
    answers = recognizer.predict_proba(catalog.of_split("test").paths[:20])
    other = Recognizer.load(recognizer.run["model"], engine="onnxruntime")
    np.testing.assert_allclose(
        other.predict_proba(catalog.of_split("test").paths[:20]), answers, atol=1e-3, err_msg="any engine"
    )
