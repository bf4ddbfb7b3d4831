"""What training can be told, in any mode; what fine-tuning can be told beside is in `fieldmark.train.recipe`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pydantic import ValidationError

from fieldmark import methods
from fieldmark.nn.weights import DEFAULT_BACKBONE
from fieldmark.runtime.engine import Precision
from fieldmark.runtime.errors import UsageError
from fieldmark.runtime.preprocess import Preprocess

#: Losses of the head: ridge regression in closed form, or logistic regression with label smoothing.
LOSSES = ("squared_error", "cross_entropy")
MODES = ("instant", "finetune", "scratch")


@dataclass(frozen=True)
class Settings:
    """What training can be told.

    mode: instant, finetune or scratch. scales: sides in pixels (none: chosen). folds: of the out-of-fold predictions.
    loss, label_smoothing: of instant mode's head (smoothing with cross_entropy only). The rest names the
    backbone and how photos are read; see `Preprocess`.
    """

    mode: str = "instant"
    method: str = methods.DEFAULT_METHOD
    backbone: str = DEFAULT_BACKBONE
    scales: tuple[int, ...] = ()
    resize: str | None = None
    color_space: str | None = None
    interpolation: str | None = None
    folds: int = 5
    loss: str = "squared_error"
    label_smoothing: float = 0.1
    seed: int = 0
    engine: str = "auto"
    precision: Precision = "f32"
    workers: int | None = None
    offline: bool = False
    pretrained: bool = True
    cache: bool = True

    def __post_init__(self) -> None:
        """Raises UsageError for a value that cannot be."""
        for name, value, least in (
            ("folds", self.folds, 2),
            ("seed", self.seed, 0),
            ("workers", self.workers, 1),
        ):
            if value is not None and not isinstance(value, int):
                raise UsageError(f"{name} is {value!r}: a whole number is needed")
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}: at least {least} is needed")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing is {self.label_smoothing}: it is a share, from 0 to below 1")
        if self.mode not in MODES:
            raise UsageError(f"no mode is called {self.mode!r}; there are: {', '.join(MODES)}")
        if self.loss not in LOSSES:
            raise UsageError(
                f"no loss of instant mode is called {self.loss!r}; there are: {', '.join(LOSSES)}; "
                "those of fine-tuning need a --budget or --epochs"
            )
        given = {name: value for name, value in self.preprocess.items() if value is not None}
        try:
            for size in self.scales or [320]:
                Preprocess(size=size, **given)
        except ValidationError as error:
            first = error.errors()[0]
            raise UsageError(f"{first['loc'][0]} is {first['input']!r}: {first['msg'].lower()}") from None

    @property
    def preprocess(self) -> dict[str, Any]:
        return {
            "resize": self.resize,
            "color_space": self.color_space,
            "interpolation": self.interpolation,
        }

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Options as the command line names them; ``size`` may be one number or several.

        Raises UsageError for a setting there is not.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if "size" in given:
            size = given.pop("size")
            given["scales"] = tuple(
                sorted({size} if isinstance(size, int | str) else set(size), reverse=True)
            )
        known = {f.name for f in fields(cls)}
        for name in given:
            if name not in known:
                raise UsageError(
                    f"there is no setting {name!r}; settings are {', '.join(sorted(known | {'size'}))}"
                )
        return cls(**given)
