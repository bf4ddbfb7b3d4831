"""A run that is killed in the middle, as far as a test can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Killed(BaseException):
    """What no code catches."""


def killed_at(step: int) -> Callable[..., None]:
    """A ``tell`` that ends the process, as far as a test can, after so many steps."""

    def tell(kind: str, *values: Any) -> None:
        if kind == "step" and values[0] == step:
            raise Killed

    return tell
