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
    """A photo set: what it is, how large it is by default, whose it is, and how many bytes are fetched for it."""

    name: str
    title: str
    classes: int
    photos: int
    licence: str
    source: str
    module: str
    download: int = 0

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
        Dataset(
            name="mnist",
            title="handwritten digits, 28 x 28 grey",
            classes=10,
            photos=70_000,
            licence="CC BY-SA 3.0",
            source="Y. LeCun, C. Cortes, C. Burges, from NIST's special databases 1 and 3, 1998",
            module="fieldmark.data.zoo.mnist",
            download=11_594_722,
        ),
        Dataset(
            name="fashion-mnist",
            title="articles of clothing, 28 x 28 grey",
            classes=10,
            photos=70_000,
            licence="MIT",
            source="H. Xiao, K. Rasul, R. Vollgraf, Zalando Research, 2017",
            module="fieldmark.data.zoo.fashion_mnist",
            download=30_878_645,
        ),
        Dataset(
            name="cifar10",
            title="animals and vehicles, 32 x 32 colour",
            classes=10,
            photos=60_000,
            licence="none named",
            source="A. Krizhevsky, V. Nair, G. Hinton, University of Toronto, 2009",
            module="fieldmark.data.zoo.cifar10",
            download=170_052_171,
        ),
        Dataset(
            name="cifar100",
            title="100 classes in 20 superclasses, 32 x 32 colour",
            classes=100,
            photos=60_000,
            licence="none named",
            source="A. Krizhevsky, V. Nair, G. Hinton, University of Toronto, 2009",
            module="fieldmark.data.zoo.cifar100",
            download=168_513_733,
        ),
    )
}


def get(name: str) -> Dataset:
    """The set of that name (``_`` counts as ``-``). Raises UsageError, with the nearest name, where there is none."""
    name = name.replace("_", "-")
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, 1, 0)
        raise UsageError(f'no photo set is called "{name}"; did you mean "{near[0]}"?')
    return DATASETS[name]
