"""Options of training, sorted by what they concern: all modes, fine-tuning, or the textbook network from scratch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fieldmark.data.augment.settings import Augment
from fieldmark.runtime.errors import UsageError
from fieldmark.train import recipe
from fieldmark.train.recipe import AUGMENT, NAMES, SHARED, Recipe
from fieldmark.train.settings import Settings

METHOD, MODE, BACKBONE = "cnn", "scratch", "textbook_cnn"
#: Layers of the network: fields of `fieldmark.methods.cnn.Options`.
LAYERS = ("stages", "activation", "pooling", "head", "cell", "dropout", "batch_norm", "hidden")
#: What else only this network knows.
OWN = ("shift", "recipe", "search")
#: What only networks with a backbone know.
FOREIGN = (
    *("backbone", "cut", "cache_gb", "layer_decay", "train_size", "head_lr", "pretrained", "depthwise"),
    *("phases", "progressive", "compile", "views", "settings", "tta", "floor"),
)
#: Without a recipe: epochs, and the share of the side by which views are moved.
EPOCHS, SHIFT = 20, 0.08


class FromScratch(BaseModel):
    """What was asked of a network from scratch.

    layers: those options of `fieldmark.methods.cnn.Options` that were given, by a recipe or one by one; recipe: how
    it learns; batch: None where nobody said; shift: the most that views are moved, as a share of the side; search:
    choose the other layers by cross-validation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: dict[str, Any] = {}
    recipe: Recipe
    shift: float = Field(SHIFT, ge=0, le=0.5)
    search: bool = False

    def key(self, seed: int) -> str:
        """Names the training that was asked for, as `Recipe.key` does."""
        return self.recipe.key(json.dumps([self.layers, self.shift, self.search], sort_keys=True), seed)


def divide(options: Mapping[str, Any]) -> tuple[Settings, Recipe | FromScratch | None]:
    """Options as the command line names them: what concerns all modes, and the mode's own (instant has none).

    Raises UsageError as `fieldmark.train.recipe.divide` does, and for options of a network that was not asked for.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("method") != METHOD:
        for name in (*LAYERS, *OWN):
            if name in given:
                raise UsageError(f"--{name.replace('_', '-')} belongs to --method {METHOD}")
        if given.get("mode") == MODE:
            raise UsageError(f"only --method {METHOD} is trained from scratch")
        return recipe.divide(given)
    if given.setdefault("mode", MODE) != MODE:
        raise UsageError(f"--method {METHOD} is always trained from scratch: leave --mode out")
    for name in FOREIGN:
        if name in given:
            shown = {"settings": "set"}.get(name, name).replace("_", "-")
            raise UsageError(f"--{shown} is for backbones, and --method {METHOD} has none")
    recipe.check_time(given)
    if given.get("search"):
        if "budget" in given:
            raise UsageError("--search compares as long as it takes: give --epochs instead of --budget")
    elif "folds" in given:
        raise UsageError(f"--folds of --method {METHOD} goes with --search")
    rest = {
        name: value
        for name, value in given.items()
        if name not in {*LAYERS, *OWN} and name not in NAMES | SHARED
    }
    settings = Settings.of({**rest, "backbone": BACKBONE})
    if len(settings.scales) > 1:
        raise UsageError(f"--method {METHOD} looks at photos in one --size, not in {len(settings.scales)}")
    return settings, _asked(given)


def _asked(given: dict[str, Any]) -> FromScratch:
    from fieldmark.methods.cnn import Options
    from fieldmark.train.textbook.recipes import RECIPE

    layers = {name: given[name] for name in LAYERS if name in given}
    learning = {name: given[name] for name in (NAMES | SHARED) - set(AUGMENT) if name in given}
    views: dict[str, Any] = {inner: given[flag] for flag, inner in AUGMENT.items() if flag in given}
    if isinstance(views.get("scale"), int | float):
        views["scale"] = (views["scale"], 1.0)
    shift = SHIFT
    if (name := given.get("recipe")) is not None:
        if name not in RECIPE:
            raise UsageError(f"no recipe is called {name!r}; there are: {', '.join(RECIPE)}")
        known = RECIPE[name]
        layers = {**known.options.model_dump(mode="json"), **layers}
        usual = {"lr": known.learning_rate, "weight_decay": known.weight_decay, "batch": known.batch}
        learning = {**usual, **({} if "budget" in learning else {"epochs": known.epochs}), **learning}
        views, shift = {"flip": known.flip, **views}, known.shift
    elif "budget" not in learning:
        learning.setdefault("epochs", EPOCHS)
    learning.setdefault("lr", 3e-3)
    Options.of(layers)  # refused in a line, before any photo is read
    augment = {**Augment.none().model_dump(), **views}
    try:
        return FromScratch(
            layers=layers,
            recipe=Recipe.of({**learning, "augment": augment}),
            shift=given.get("shift", shift),
            search=bool(given.get("search")),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{first['loc'][0]} is {first['input']!r}: {first['msg'].lower()}") from None
