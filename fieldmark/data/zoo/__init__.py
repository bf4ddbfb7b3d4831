"""Photo sets by name. A set is a module with ``write(root, *, ..., progress)``, imported when it is used."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fieldmark.runtime.errors import UsageError


@dataclass(frozen=True)
class Dataset:
    """A photo set: what it is, how large it is by default, whose it is."""

    name: str
    title: str
    classes: int
    photos: int
    licence: str
    source: str
    module: str

    @property
    def write(self) -> Callable[..., Path]:
        """``write(root, *, options...)`` of the set's module."""
        return import_module(self.module).write


DATASETS: dict[str, Dataset] = {
    one.name: one
    for one in (
        Dataset(
            name="look-alikes",
            title="rendered beetles: a species is one small mark, and its place is known",
            classes=12,
            photos=600,
            licence="Apache-2.0",
            source="drawn by fieldmark",
            module="fieldmark.data.lookalikes",
        ),
        Dataset(
            name="digits",
            title="handwritten digits: small, real, and there without a network",
            classes=10,
            photos=1797,
            licence="CC BY 4.0",
            source="scikit-learn; E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998",
            module="fieldmark.data.zoo.digits",
        ),
    )
}


def get(name: str) -> Dataset:
    """The set of that name. Raises UsageError, with the nearest name, where there is none."""
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, 1, 0)
        raise UsageError(f'no photo set is called "{name}"; did you mean "{near[0]}"?')
    return DATASETS[name]
