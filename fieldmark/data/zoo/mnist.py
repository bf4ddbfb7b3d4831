"""MNIST: 70,000 handwritten digits of 28 x 28 grey levels, white ink on black; 60,000 to train, 10,000 to test.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fieldmark.data.zoo import idx
from fieldmark.data.zoo.idx import IdxFile

#: The home of the files refuses most visitors today; the Common Visual Data Foundation keeps them.
ADDRESSES = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
NAMES = tuple("0123456789")
FILES = {
    "train": (
        IdxFile(
            "train-images-idx3-ubyte",
            (60_000, 28, 28),
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        IdxFile(
            "train-labels-idx1-ubyte",
            (60_000,),
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
    ),
    "test": (
        IdxFile(
            "t10k-images-idx3-ubyte",
            (10_000, 28, 28),
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        IdxFile(
            "t10k-labels-idx1-ubyte",
            (10_000,),
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
}


def write(
    root: str | Path,
    *,
    source: str = "",
    per_class: int = 0,
    progress: Callable[[int, int], None] | None = None,
    download: Callable[[int, int], None] | None = None,
) -> Path:
    """See `fieldmark.data.zoo.idx.write`."""
    more = {"source": source, "per_class": per_class, "progress": progress, "download": download}
    return idx.write(FILES, ADDRESSES, NAMES, root, **more)  # type: ignore[arg-type]
