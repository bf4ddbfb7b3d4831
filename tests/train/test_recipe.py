"""Settings of fine-tuning: what is read from options, what is refused, and which mode they belong to."""

from __future__ import annotations

from typing import Any

import pytest

from fieldmark.runtime.errors import UsageError
from fieldmark.train.recipe import BUDGET, NAMES, Recipe, divide, seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("10m", 600), ("1.5h", 5400), ("45", 45), (" 2 m ", 120), ("0.5m", 30)],
)
def test_times(text: str, expected: float) -> None:
    assert seconds(text) == expected and Recipe.of({"budget": text}).budget == expected


@pytest.mark.parametrize("text", ["", "m", "10x", "-5m", "0", "0s", "1h30m", "ten", "1e3", "nan"])
def test_no_times(text: str) -> None:
    for read in (
        seconds,
        lambda t: Recipe.of({"budget": t}),
        lambda t: divide({"mode": "finetune", "budget": t}),
    ):
        with pytest.raises(UsageError) as caught:
            read(text)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"is no time: write 90s, 10m or 1\.5h"):
        seconds(text)


def test_flags_of_views_go_to_the_views() -> None:
    recipe = Recipe.of(
        {"crop_scale": 0.3, "flip": False, "rotate": 15, "mixup": 0.2, "lr": 1e-4, "batch": None}
    )
    assert recipe.augment.scale == (0.3, 1.0) and recipe.augment.rotate == 15 and recipe.augment.mixup == 0.2
    assert recipe.augment.flip is False and recipe.lr == 1e-4 and recipe.batch is None
    assert Recipe.of({"crop_scale": (0.2, 0.8)}).augment.scale == (0.2, 0.8)
    assert Recipe.of({}) == Recipe() and Recipe().augment.flip is True


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr": 0}, "lr is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"batch": 1}, "batch is 1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"train_size": 8}, "train_size is 8"),
        ({"optimizer": "lion"}, "optimizer is 'lion'"),
        ({"on_nan": "cry"}, "on_nan is 'cry'"),
        ({"average": 1.0}, "average is 1.0"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"rotate": 500}, "rotate is 500"),
        ({"policy": "best"}, "policy is 'best'"),
        ({"loss": "nothing"}, "nothing"),
        ({"phases": "three"}, "phases is 'three'"),
        ({"progressive": "slowly"}, "progressive is 'slowly'"),
        ({"compile": "maybe"}, "compile is 'maybe'"),
        ({"no_such": 1}, "no_such"),
        ({"crop_scale": 7.0}, "crop_scale is (7.0, 1.0): two shares of the area"),
        ({"imbalance": "fair"}, "imbalance is called 'fair'; there are: auto"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe.of(options)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_one_phase_of_one_size_unless_asked_otherwise() -> None:
    usual = Recipe()
    assert (usual.phases, usual.progressive, usual.compile) == ("one", False, "auto")
    own = Recipe.of({"phases": "auto", "progressive": True, "compile": "yes"})
    assert (own.phases, own.progressive, own.compile) == ("auto", True, "yes")


def test_the_mode_decides_who_reads_what() -> None:
    settings, recipe = divide(
        {"mode": "finetune", "epochs": 3, "lr": 1e-4, "seed": 7, "size": 64, "flip": None}
    )
    assert recipe.epochs == 3 and recipe.budget is None and recipe.lr == 1e-4
    assert settings.mode == "finetune" and settings.seed == 7 and settings.scales == (64,)
    settings, recipe = divide({"mode": "finetune", "loss": "focal", "label_smoothing": 0.2})
    assert recipe.loss == "focal" and recipe.label_smoothing == 0.2 and recipe.budget == seconds(BUDGET)
    assert settings.loss == "squared_error", "instant mode's head keeps its own"
    settings, recipe = divide({"loss": "cross_entropy", "label_smoothing": 0.2, "batch": None})
    assert recipe is None and settings.loss == "cross_entropy" and settings.label_smoothing == 0.2


@pytest.mark.parametrize("name", ["lr", "mixup", "crop_scale", "cut", "on_nan", "cache_gb"])
def test_options_of_fine_tuning_need_it(name: str) -> None:
    assert name in NAMES
    with pytest.raises(
        UsageError, match=f"--{name.replace('_', '-')} belongs to fine-tuning: give a --budget"
    ):
        divide({name: 1})


def test_instant_mode_takes_no_budget() -> None:
    with pytest.raises(UsageError, match="--budget belongs to fine-tuning: leave --mode instant out"):
        divide({"mode": "instant", "budget": "60s"})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label_smoothing": 0.2}, "--label-smoothing needs --loss cross_entropy"),
        ({"loss": "focal"}, "those of fine-tuning need a --budget or --epochs"),
        ({"epochs": 1, "size": [128, 96]}, "one --size, not in 2"),
        ({"epochs": 1, "budget": "90s"}, "two ways to say how long"),
    ],
)
def test_what_would_be_done_in_vain_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        divide(options)


@pytest.mark.parametrize("mode", ["instant", "finetune"])
def test_no_such_setting(mode: str) -> None:
    with pytest.raises(UsageError, match="no setting 'colour'"):
        divide({"mode": mode, "colour": 1})
