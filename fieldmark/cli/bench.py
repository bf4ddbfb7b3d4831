"""``fieldmark bench``: which method is best for these photos?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from fieldmark.cli.common import Source, verb
from fieldmark.cli.screen import Screen


@verb(
    examples="""
    fieldmark bench methods photos/ --budget 90s
    fieldmark bench methods photos/ --method plain --method wsdan --method pmg --budget 5m --seeds 3
    fieldmark bench methods photos/ --out methods.csv
    """
)
def bench(
    screen: Screen,
    what: Annotated[Literal["methods"], typer.Argument(metavar="WHAT", show_default=False, help="methods.")],
    source: Source,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Repeat it for several.  [default: all that fit the photos]"),
    ] = None,
    budget: Annotated[
        str, typer.Option(metavar="TIME", help="For each training: 90s, 10m, 1h; instant: heads alone.")
    ] = "90s",
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Trainings of each method.")] = 1,
    first_seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the first training.")] = 0,
    backbone: Annotated[str, typer.Option(metavar="NAME", help="The same for all.")] = "",
    size: Annotated[int | None, typer.Option(metavar="PIXELS", min=8, help="The same for all.")] = None,
    flags: Annotated[str, typer.Option(metavar="WORDS", help="More flags of `train`, for all.")] = "",
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Of the photo set.  [default: the source's]")
    ] = "",
    out: Annotated[
        Path, typer.Option(help="Table of the rows; rows that it has are not measured again.")
    ] = Path("methods.csv"),
) -> None:
    """Train methods with the same time, backbone, photos and seeds, and compare them.

    Every row is written as it comes; the same command goes on where it was stopped. Test photos are judged once.
    """
    from fieldmark.evaluate import bench as table
    from fieldmark.evaluate.bench_summary import summary
    from fieldmark.runtime.catalog import Catalog
    from fieldmark.runtime.errors import FieldmarkError
    from fieldmark.train.choose import fitting
    from fieldmark.train.recipe import INSTANT, seconds

    if budget != INSTANT:
        seconds(budget)  # refused at once, and not once a training
    catalog = Catalog.read(source)
    names = method or fitting(catalog, budget == INSTANT)
    set_name = name or Path(source).resolve().stem
    numbers = range(first_seed, first_seed + seeds)
    wanted = table.cells(set_name, names, numbers, budget, backbone, str(size or ""), flags)
    with tempfile.TemporaryDirectory(prefix="fieldmark-bench-") as work, screen.progress() as progress:
        for row in table.run(source, wanted, out, Path(work), progress):
            told = row.get("error") or f"{float(row['top1']):.1%} of {row['n_test']} test photos"
            progress("", 0, None, f"{row['method']}, seed {row['seed']}: {told}")
    lines = summary(table.alike(table.read(out), wanted[0], table.fingerprint(catalog)))
    screen.table(
        ("method", "top-1", "spread", "points to plain", "training", "answer", "mark hit"),
        [
            (
                line["method"],
                _number(line.get("top1"), ".3f"),
                _number(line.get("spread"), ".3f"),
                _number(line.get("delta"), "+.1f"),
                _number(line.get("training"), ".1f"),
                _number(line.get("answer"), ".1f"),
                _number(line.get("mark_hit"), ".2f"),
            )
            for line in lines
        ],
    )
    failed = {line["method"]: line["error"] for line in lines if line.get("error")}
    for method_name, why in failed.items():
        screen.warn(f"{method_name}: {why}")
    screen.answer({"methods": lines, "table": str(out)})
    if len(failed) == len(lines):
        raise FieldmarkError(f"no method could be compared; {out} says why: remove its rows to try again")


def _number(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)
