"""Plans: written whole, read back alike, and what they belong to."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fieldmark.data.augment import Augment
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train.plan import PLAN, Plan, data_key

Make = Callable[..., Any]


def test_through_a_file(plan: Make, tmp_path: Path) -> None:
    one = plan(
        lr=1 / 3, augment=Augment(mixup=0.1 + 0.2, policy="rand"), sampler="balanced", why="é", data="ab"
    )
    one.write(tmp_path / "new" / "folder")
    assert Plan.read(tmp_path / "new" / "folder") == one
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [PLAN], "nothing is left over"


@pytest.mark.parametrize("text", [None, "", "{", "{}", "[]", '{"seed": -1}'])
def test_a_plan_that_cannot_be_read(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / PLAN).write_text(text)
    with pytest.raises(FieldmarkError, match=r"plan\.json cannot be read: start again with --overwrite"):
        Plan.read(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch": 0}, {"lr": 0.0}, {"views": -1}, {"size": 4}, {"x": 1}]
)
def test_phases_that_cannot_be(plan: Make, wrong: dict[str, Any]) -> None:
    fields = plan().phases[0].model_dump()
    with pytest.raises(ValidationError):
        type(plan().phases[0])(**{**fields, **wrong})


def test_a_line_a_phase(plan: Make) -> None:
    assert plan().describe() == ["1. the whole network at 32 px, new views every epoch: 3.0 epochs"]
    kept = plan(cut="blocks.1", views=4, steps=15)
    assert kept.describe() == ["1. everything behind blocks.1 at 32 px, 4 kept views a photo: 5.0 epochs"]
    two = kept.model_copy(update={"phases": [*kept.phases, *plan().phases]})
    assert [line[:2] for line in two.describe()] == ["1.", "2."]


def test_what_a_run_belongs_to() -> None:
    """Anything that changes what is learned changes the key; the same things give the same."""
    same = (["aa", "bb"], ["ant", "bee"], [False, True], "graph")
    others = [
        (["aa", "bc"], ["ant", "bee"], [False, True], "graph"),
        (["bb", "aa"], ["ant", "bee"], [False, True], "graph"),
        (["aa", "bb"], ["ant", "wasp"], [False, True], "graph"),
        (["aa", "bb"], ["ant", "bee"], [True, False], "graph"),
        (["aa", "bb"], ["ant", "bee"], [False, True], "other"),
        (["aa"], ["ant"], [False], "graph"),
    ]
    keys = [data_key(*one) for one in (same, *others)]
    assert data_key(*same) == keys[0] and len(keys[0]) == 64
    assert all(a != b for a, b in itertools.combinations(keys, 2))
