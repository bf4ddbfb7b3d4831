"""``fieldmark methods``: the ways of training."""

from __future__ import annotations

from fieldmark.cli.common import verb
from fieldmark.cli.screen import Screen

METHODS = (
    {
        "method": "second-order",
        "mode": "instant",
        "backbone": "frozen",
        "what": "mean and normalised covariance of the last maps, a linear head; seconds on a CPU",
        "source": "Lin et al. 2015; Li et al. 2018",
    },
)


@verb(
    examples="""
    fieldmark methods
    fieldmark methods --json
    """
)
def methods(screen: Screen) -> None:
    """List the methods of training, and the mode (`train --mode`) that each belongs to."""
    columns = ("method", "mode", "backbone", "what", "source")
    screen.table(columns, [[one[name] for name in columns] for one in METHODS])
    screen.answer({"methods": list(METHODS)})
