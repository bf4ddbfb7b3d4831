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
from fieldmark.train.plan.plan import AS_ASKED, PLAN, RESERVE, WRITING, Phase, Plan, data_key, deadline
from fieldmark.train.recipe import Recipe

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


def test_lines_of_phases_that_differ(plan: Make) -> None:
    heads = plan(cut="blocks.2", heads=True, views=2, steps=15)
    assert heads.describe() == ["1. the method's own layers at 32 px, 2 kept views a photo: 5.0 epochs"]
    growing = plan(size=224, rising=((160, 1), (192, 2)))
    assert growing.describe() == [
        "1. the whole network at 160, then 192, then 224 px, new views every epoch: 3.0 epochs"
    ]


def test_what_the_recipe_says_stands_in_the_plan(plan: Make) -> None:
    recipe = Recipe(
        optimizer="sgd",
        momentum=0.5,
        weight_decay=0.2,
        layer_decay=0.7,
        average=0.9,
        clip=3.0,
        patience=4,
        on_nan="skip",
        augment=Augment(mixup=0.3),
    )
    made = Plan.of(recipe, seed=1, photos=9, held_out=2, phases=plan().phases, compile=True)
    assert {name: getattr(made, name) for name in AS_ASKED} == {
        name: getattr(recipe, name) for name in AS_ASKED
    }
    assert set(AS_ASKED) == set(Plan.model_fields) & set(Recipe.model_fields) - {"compile", "phases"}
    assert (made.seed, made.photos, made.compile) == (1, 9, True)

    class Own(Plan):
        more: int

    own = Own.of(recipe, seed=1, photos=9, held_out=2, phases=plan().phases, more=3)
    assert isinstance(own, Own) and own.more == 3


def growing(*rising: tuple[int, int], size: int = 64) -> Phase:
    return Phase(size=size, rising=rising, steps=9, batch=2, lr=1, head_lr=1, judge_every=1, save_every=1)


def test_sides_by_epoch() -> None:
    phase = growing((32, 1), (48, 3))
    assert [phase.side(epoch) for epoch in range(6)] == [32, 48, 48, 64, 64, 64]
    assert phase.sides() == [32, 48, 64] and growing().sides() == [64] and growing().side(0) == 64


@pytest.mark.parametrize("rising", [(), ((32, 1), (48, 3)), ((32, 50),)])
@pytest.mark.parametrize(("first", "step"), [(0, 1), (0, 7), (5, 9), (14, 20), (30, 31)])
@pytest.mark.parametrize("left", [0.0, 3.0, 40.0])
def test_steps_that_are_left(rising: tuple[tuple[int, int], ...], first: int, step: int, left: float) -> None:
    """Compared with a clock that runs as long as a step has pixels."""
    phase, an_epoch, unit = growing(*rising), 4, 0.7

    def takes(number: int) -> float:
        return unit * (phase.side(number // an_epoch) / 64) ** 2

    passed = sum(takes(number) for number in range(first, step))
    clock, expected = 0.0, 0
    while clock + takes(step + expected) <= left:
        clock += takes(step + expected)
        expected += 1
    assert abs(phase.steps_left(an_epoch, first, step, passed, left) - expected) <= 1


def test_phases_with_the_same_maps_share_a_file(plan: Make) -> None:
    one, other = plan(cut="a", views=2).phases[0], plan(cut="b", views=2).phases[0]
    again = one.model_copy(update={"own": 1, "steps": 3, "heads": True})
    whole = plan().model_copy(update={"phases": [other, one, again, other]})
    assert [whole.maps(number) for number in range(4)] == [
        "maps-1.f16",
        "maps-2.f16",
        "maps-2.f16",
        "maps-1.f16",
    ]


def test_the_deadline() -> None:
    assert deadline(100.0, 50, 10.0) == pytest.approx(100 * (1 - RESERVE) - WRITING - 5)


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
