"""How fine-tuning is to be done: everything that a user may set, with its default."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fieldmark import losses, methods
from fieldmark.data.augment.settings import Augment
from fieldmark.runtime.errors import UsageError
from fieldmark.train import imbalance, loggers
from fieldmark.train.settings import Settings

#: What fine-tuning may take where neither a budget nor epochs are given.
BUDGET = "10m"
#: The mode, and the budget of a comparison, in which only heads are fitted.
INSTANT = "instant"
_UNITS = {"s": 1, "m": 60, "h": 3600, "": 1}
#: Flags whose value goes into `Augment`, by their name there.
AUGMENT = {
    "crop_scale": "scale",
    "flip": "flip",
    "rotate": "rotate",
    "color": "color",
    "blur": "blur",
    "erase": "erase",
    "policy": "policy",
    "mixup": "mixup",
    "cutmix": "cutmix",
}


class Recipe(BaseModel):
    """Settings of a fine-tuning run.

    budget: seconds from the start of the process to the finished model (none: ``epochs`` decide). epochs: passes
    over the photos. batch: photos a step.
    train_size: side of the views in pixels (none: 0.7 of the size that is answered at, as FixRes has it).
    lr, head_lr: peak rates of the network and of the head. loss: see `fieldmark.losses`. imbalance: see
    `fieldmark.train.imbalance`. cut: the module behind which the network learns ("none": all of it learns;
    none: planned). depthwise: do depthwise kernels learn (none: on GPUs)? cache_gb: room for maps on the disk.
    views: kept (as maps), new (every epoch) or auto.
    phases: one, two (kept maps behind a deep cut, then new views) or auto (two where there is time for both).
    progressive: do views grow while it trains? compile: are the steps compiled (auto: on GPUs, where it pays)?
    folds: so many models more are trained, each without one fold of the photos, on which it is judged (none: no
    cross-validation). log: see `fieldmark.train.loggers`. settings: of the method (its `Options`); tta: does the
    answer look again at a crop, with methods that can? floor: is the instant model given where it is better on the
    held-out photos?
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget: float | None = Field(None, gt=0)
    epochs: int | None = Field(None, ge=1)
    batch: int | None = Field(None, ge=2)
    lr: float = Field(3e-4, gt=0)
    head_lr: float = Field(3e-3, gt=0)
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    layer_decay: float = Field(1.0, gt=0, le=1)
    average: float = Field(0.99, ge=0, lt=1)
    clip: float = Field(1.0, ge=0)
    patience: int = Field(0, ge=0)
    loss: str = losses.DEFAULT_LOSS
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    imbalance: str = "auto"
    augment: Augment = Augment()
    train_size: int | None = Field(None, ge=16, le=4096)
    cut: str | None = None
    views: Literal["auto", "kept", "new"] = "auto"
    phases: Literal["auto", "one", "two"] = "one"
    progressive: bool = False
    compile: Literal["auto", "no", "yes"] = "auto"
    depthwise: bool | None = None
    cache_gb: float = Field(4.0, ge=0)
    amp: Literal["auto", "no", "bf16", "fp16"] = "auto"
    on_nan: Literal["fail", "skip"] = "fail"
    folds: int | None = Field(None, ge=2)
    log: tuple[str, ...] = ()
    settings: dict[str, Any] = {}
    tta: bool = False
    floor: bool = True

    @field_validator("loss")
    @classmethod
    def _known(cls, loss: str) -> str:
        losses.parse(loss)
        return loss

    @field_validator("imbalance")
    @classmethod
    def _answer(cls, name: str) -> str:
        imbalance.check(name)
        return name

    @field_validator("log", mode="before")
    @classmethod
    def _loggers(cls, names: Any) -> Any:
        names = (names,) if isinstance(names, str) else names
        loggers.check(names)
        return names

    @field_validator("budget", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        return seconds(value) if isinstance(value, str) else value

    def key(self, method: str, seed: int) -> str:
        """Names the training that was asked for, as one SHA-256: a killed one goes on only with the same."""
        told = [method, seed, self.model_dump(mode="json", exclude=ANEW)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Recipe:
        """From options as the command line names them. Raises UsageError for a value that cannot be."""
        given = {name: value for name, value in options.items() if value is not None}
        views = {inner: given.pop(flag) for flag, inner in AUGMENT.items() if flag in given}
        if "scale" in views and isinstance(views["scale"], (int, float)):
            views["scale"] = (views["scale"], 1.0)
        try:
            return cls(**given, **({"augment": Augment(**views)} if views else {}))
        except ValidationError as error:
            first = error.errors()[0]
            inner = str(first["loc"][-1]) if first["loc"] else "setting"
            name = next((flag for flag, own in AUGMENT.items() if own == inner), inner)
            why = first["msg"].lower().removeprefix("value error, ")
            raise UsageError(f"{name} is {first['input']!r}: {why}") from None


#: Settings that a killed run may be given anew: how long it takes, its room, who is told, and what is made of it.
ANEW = {"budget", "folds", "log", "cache_gb", "tta", "floor"}

#: Names of options that only fine-tuning knows, those that it reads in its own way, and those for all modes.
NAMES = (set(Recipe.model_fields) | set(AUGMENT)) - {"augment", "loss", "label_smoothing", "folds"}
SHARED, COMMON = {"loss", "label_smoothing"}, {"folds"}


def divide(options: Mapping[str, Any]) -> tuple[Settings, Recipe | None]:
    """Options as the command line names them: what concerns all modes, and fine-tuning (None: instant mode).

    Raises UsageError for a setting there is not, a value that cannot be, and for options of fine-tuning without
    it.
    """
    given = {name: value for name, value in options.items() if value is not None}
    own = {name: value for name, value in given.items() if name in NAMES}
    card = methods.card(given.get("method", methods.DEFAULT_METHOD))
    timed = not card.instant or given.keys() & {"budget", "epochs"}
    if given.get("mode", "finetune" if timed else INSTANT) == INSTANT:
        if not card.instant:
            raise UsageError(
                f"{card.name} has layers of its own, which instant mode cannot train: give a --budget or --epochs"
            )
        if own:
            name = {"settings": "set"}.get(name := next(iter(own)), name).replace("_", "-")
            how = "leave --mode instant out" if "mode" in given else "give a --budget or --epochs, too"
            raise UsageError(f"--{name} belongs to fine-tuning: {how}")
        settings = Settings.of(given)
        if "label_smoothing" in given and settings.loss != "cross_entropy":
            raise UsageError("--label-smoothing needs --loss cross_entropy, or fine-tuning")
        return settings, None
    check_time(own)
    own |= {name: given[name] for name in (SHARED | COMMON) & given.keys()}
    rest = {name: value for name, value in given.items() if name not in NAMES | SHARED} | {"mode": "finetune"}
    if not own.keys() & {"budget", "epochs"}:
        own["budget"] = BUDGET
    settings = Settings.of(rest)
    if len(settings.scales) > 1:
        raise UsageError(f"fine-tuning looks at photos in one --size, not in {len(settings.scales)}")
    return settings, Recipe.of(own)


def check_time(given: Mapping[str, Any]) -> None:
    """Raise UsageError where options say twice how long to train."""
    if {"budget", "epochs"} <= given.keys():
        raise UsageError("--budget and --epochs are two ways to say how long: give one of them")


def seconds(text: str) -> float:
    """ "90s", "10m", "1.5h" or plain seconds. Raises UsageError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if not found or float(found[1]) <= 0:
        raise UsageError(f"{text!r} is no time: write 90s, 10m or 1.5h")
    return float(found[1]) * _UNITS[found[2]]
