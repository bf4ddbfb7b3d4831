"""Whose photo is it? Which of a catalog's photos a model may be judged on, and that answers stay with labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fieldmark.evaluate.judge import OTHER_SPLIT, TRAINED_ON, NothingLeftError, judge
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError, UsageError
from fieldmark.runtime.evaluation import UNREADABLE, UNSEEN
from fieldmark.runtime.image import content_hash
from fieldmark.runtime.predictor import Answer

CLASSES = ["a", "b", "c"]


class Oracle:
    """Answers with the class that a file's first letter names; ``?`` cannot be read. Remembers splits by bytes."""

    temperature = 0.5
    classes = CLASSES

    def __init__(self, splits: dict[str, str]):
        known = {content_hash(text.encode()): split for text, split in splits.items()}
        self.bundle = SimpleNamespace(splits=lambda: known)

    def answers(self, sources: Sequence[str]) -> Iterator[Answer]:
        for source in sources:
            text = Path(source).read_text()
            content = content_hash(text.encode())
            if text[0] == "?":
                yield Answer(source, None, content, "truncated file")
            else:
                values = 3 * np.eye(3, dtype=np.float32)[CLASSES.index(text[0])]
                yield Answer(source, values, content)


def table(folder: Path, rows: Sequence[tuple[str, str | None] | tuple[str, str | None, str | None]]) -> Path:
    """A CSV of files: (content, label[, split]); the file is named by its row."""
    lines = ["path,label,split"]
    for number, (text, label, *split) in enumerate(rows):
        (folder / f"{number}.jpg").write_text(text)
        lines.append(f"{number}.jpg,{label or ''},{(split[0] or '') if split else ''}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    return folder / "photos.csv"


def names(judged: Any) -> list[str]:
    return [Path(path).stem for path in judged.evaluation.predictions["path"].to_pylist()]


def ask(predictor: Oracle, source: Any, split: str = "test") -> Any:
    return judge(predictor, source, split)  # type: ignore[arg-type]


def test_the_catalogs_own_split_decides(tmp_path: Path) -> None:
    rows = [
        ("a1", "a", "train"),
        ("a2", "a", "test"),
        ("b3", "b", "val"),
        ("c4", "b", "test"),
        ("c5", "c", None),
    ]
    judged = ask(Oracle({"a2": "test"}), table(tmp_path, rows))
    assert names(judged) == ["1", "3"] and judged.evaluation.top1 == 0.5
    assert judged.evaluation.excluded == 0 and not judged.warnings and not judged.skipped
    moved = ask(Oracle({"b3": "train"}), table(tmp_path, rows), "val")
    assert names(moved) == ["2"], "also against what the model remembers"


def test_without_a_column_the_content_decides(tmp_path: Path) -> None:
    rows = [("a1", "a"), ("a2", "a"), ("b3", "b"), ("b4", "b"), ("c5", "c")]
    predictor = Oracle({"a1": "train", "a2": "test", "b3": "val", "b4": "test"})
    judged = ask(predictor, table(tmp_path, rows))
    assert names(judged) == ["1", "3", "4"], "a photo that it never met belongs to test"
    assert judged.evaluation.excluded_by_reason == {TRAINED_ON: 2}
    assert not judged.warnings
    judged = ask(predictor, table(tmp_path, rows), "val")
    assert names(judged) == ["2"] and judged.evaluation.excluded_by_reason == {OTHER_SPLIT: 4}
    judged = ask(predictor, table(tmp_path, rows), "train")
    assert names(judged) == ["0"]


def test_it_says_when_it_cannot_know(tmp_path: Path) -> None:
    rows = [("a1", "a"), ("b2", "b")]
    judged = ask(Oracle({"a9": "train"}), table(tmp_path, rows))
    assert judged.evaluation.n == 2
    (line,) = judged.warnings
    assert "cannot know" in line and "\n" not in line
    assert not ask(Oracle({"b2": "test"}), table(tmp_path, rows)).warnings, "it has met one of them"


def test_photos_trained_on_never_count_under_whatever_name(tmp_path: Path) -> None:
    rows = [("a1", "a", "test"), ("a2", "a", "test"), ("b3", "b", "test"), ("b4", "b", "train")]
    predictor = Oracle({"a1": "train", "b3": "val", "a2": "test", "b4": "train"})
    judged = ask(predictor, table(tmp_path, rows))
    assert names(judged) == ["1"]
    assert judged.evaluation.excluded_by_reason == {TRAINED_ON: 2} and judged.evaluation.excluded == 2
    assert names(ask(predictor, table(tmp_path, rows), "all")) == ["1"]


def test_train_and_val_are_judged_when_asked_for_and_marked(tmp_path: Path) -> None:
    rows = [("a1", "a", "train"), ("b2", "b", "train"), ("a3", "a", "val"), ("b4", "b", "test")]
    predictor = Oracle({"a1": "train", "b2": "train", "a3": "val"})
    for split, expected in (("train", ["0", "1"]), ("val", ["2"])):
        judged = ask(predictor, table(tmp_path, rows), split)
        assert names(judged) == expected and any("fitted on" in line for line in judged.warnings)


def test_all_without_a_column(tmp_path: Path) -> None:
    rows = [("a1", "a"), ("b2", "b"), ("c3", "c"), ("c4", "c")]
    judged = ask(Oracle({"a1": "train", "b2": "val", "c3": "test"}), table(tmp_path, rows), "all")
    assert names(judged) == ["2", "3"]


def test_answers_stay_with_their_labels(tmp_path: Path) -> None:
    """Rows that fall out in the middle must not shift the others."""
    rows = [("a0", "a"), ("?1", "a"), ("b2", "b"), ("a3", "a"), ("c4", "d"), ("c5", "c"), ("b6", "c")]
    judged = ask(Oracle({"a0": "train", "b2": "test"}), table(tmp_path, rows))
    found = judged.evaluation
    assert names(judged) == ["2", "3", "5", "6"]
    assert found.predictions["label"].to_pylist() == ["b", "a", "c", "c"]
    assert found.predictions["predicted"].to_pylist() == ["b", "a", "c", "b"]
    assert found.top1 == 0.75 and found.excluded_by_reason == {TRAINED_ON: 1, UNREADABLE: 1, UNSEEN: 1}
    hashes = found.predictions["hash"].to_pylist()
    assert hashes == [content_hash(text.encode()) for text in ("b2", "a3", "c5", "b6")]
    assert [(Path(s.path).name, s.reason) for s in judged.skipped] == [("1.jpg", "truncated file")]
    (line,) = judged.warnings
    assert "1 label was never seen" in line and "'d'" in line
    # 3 / temperature 0.5 is a score of e^6 / (e^6 + 2).
    assert found.predictions["score"].to_pylist()[0] == pytest.approx(np.exp(6) / (np.exp(6) + 2), rel=1e-5)


def test_rows_that_the_catalog_refused_are_passed_on(tmp_path: Path) -> None:
    judged = ask(Oracle({"a0": "test"}), table(tmp_path, [("a0", "a"), ("b1", None), ("b2", "b", "tset")]))
    reasons = sorted(item.reason.split(" (")[0] for item in judged.skipped)
    assert reasons == ["no label", "unknown split 'tset'"]
    assert names(judged) == ["0"] and judged.evaluation.excluded == 2
    assert set(judged.evaluation.excluded_by_reason) == {item.reason for item in judged.skipped}


@pytest.mark.parametrize(
    ("rows", "known", "words"),
    [
        ([("a0", "a"), ("b1", "b")], {"a0": "train", "b1": "val"}, "2 used in training"),
        ([("?0", "a"), ("?1", "b")], {}, "2 unreadable"),
        ([("a0", "x"), ("b1", "y")], {"a0": "test"}, "2 label never seen in training"),
    ],
)
def test_nothing_left(tmp_path: Path, rows: Any, known: dict[str, str], words: str) -> None:
    with pytest.raises(NothingLeftError, match=words) as caught:
        ask(Oracle(known), table(tmp_path, rows))
    assert len(caught.value.skipped) == sum(text[0] == "?" for text, _ in rows)
    assert "\n" not in str(caught.value)


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    source = table(tmp_path, [("a0", "a", "train"), ("b1", "b", "train"), ("b2", "b", "val")])
    with pytest.raises(FieldmarkError, match="no test photos; it has 2 train, 1 val"):
        ask(Oracle({}), source)
    with pytest.raises(UsageError, match="choose train, val, test or all"):
        ask(Oracle({}), source, "Test")


def test_sources_of_any_kind_and_progress(tmp_path: Path) -> None:
    source = Catalog.read(table(tmp_path, [("a0", "a"), ("b1", "b")]))
    seen: list[tuple[str, int, int]] = []
    judge(Oracle({"a0": "test"}), source, "test", lambda *words: seen.append(words))  # type: ignore[arg-type]
    assert seen == [("evaluating", 1, 2), ("evaluating", 2, 2)]
