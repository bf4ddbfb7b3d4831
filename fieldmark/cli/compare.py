"""``fieldmark compare``: is one run really better than another?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fieldmark.cli.common import verb
from fieldmark.cli.screen import Screen

_HELP = "A run folder, or what `evaluate --out` wrote."


@verb(
    examples="""
    fieldmark compare runs/small runs/large
    fieldmark compare small.parquet large.parquet --json
    """
)
def compare(
    screen: Screen,
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", show_default=False, help=_HELP)],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", show_default=False, help=_HELP)],
    samples: Annotated[int, typer.Option(metavar="N", min=100, help="Bootstrap resamples.")] = 10_000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the resampling.")] = 0,
) -> None:
    """Tell whether one run is really better than another.

    Both are judged on the photos that both evaluated (paired bootstrap, McNemar's exact test).
    """
    from fieldmark.evaluate.compare import compare as judge

    result = judge(run_a, run_b, n=samples, seed=seed)
    rows = [
        (name, of.a, of.b, of.difference, f"{of.ci95[0]:+.3f} to {of.ci95[1]:+.3f}")
        for name, of in (("top-1", result.top1), ("macro F1", result.macro_f1))
    ]
    screen.say(f"A: {result.a}")
    screen.say(f"B: {result.b}")
    screen.say(result.photos)
    screen.table(("", "A", "B", "B - A", "95%"), rows)
    screen.say(f"only A right: {result.only_a_right} photos; only B right: {result.only_b_right}")
    screen.say(result.verdict)
    screen.answer(result.to_dict())
