"""``fieldmark evaluate``: how good is this model on photos of known class? Runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fieldmark.cli.common import (
    Engine,
    Model,
    Overwrite,
    Precision,
    Source,
    Workers,
    check_free,
    model_folder,
    verb,
)
from fieldmark.cli.screen import Screen

if TYPE_CHECKING:
    from fieldmark.runtime.results import Evaluation, Skipped

#: So many of the worst classes are shown, and of the photos that are no use.
_WORST, _LISTED = 10, 5


@verb(
    examples="""
    fieldmark evaluate runs/mine photos/
    fieldmark evaluate runs/mine/model photos/ --split test --json
    fieldmark evaluate runs/mine/model new.csv --split all --out predictions.parquet --report report.html
    """
)
def evaluate(
    screen: Screen,
    model: Model,
    source: Source,
    split: Annotated[
        Literal["test", "val", "train", "all"],
        typer.Option(metavar="NAME", help="Which photos: test, val, train or all."),
    ] = "test",
    out: Annotated[
        Path | None, typer.Option(help="Write an answer a photo to this .parquet file, for `compare`.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a report to this .html file.")] = None,
    overwrite: Overwrite = False,
    engine: Engine = "auto",
    precision: Precision = "f32",
    workers: Workers = None,
) -> None:
    """Measure a model on photos of known class.

    Photos that the model was trained on are left out and counted: the model remembers them by content.
    """
    from fieldmark.runtime.errors import UsageError

    for path, ending in ((out, ".parquet"), (report, ".html")):
        if path is not None:
            if path.suffix.lower() != ending:
                raise UsageError(f"{path} must end in {ending}")
            check_free(path, overwrite=overwrite)

    from fieldmark.recognizer import Recognizer

    with screen.progress() as progress:
        recognizer = Recognizer.load(model_folder(model), engine=engine, precision=precision, workers=workers)
        result = recognizer.evaluate(source, split=split, progress=progress)
    if out is not None:
        from pyarrow import parquet

        from fieldmark.runtime.cache import atomic_write

        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as temporary:
            parquet.write_table(result.predictions, temporary, compression="zstd")
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        recognizer.report(result, report)
    for line in recognizer.warnings:
        screen.warn(line)
    _tell(screen, result, recognizer.skipped)


def _tell(screen: Screen, result: Evaluation, skipped: list[Skipped]) -> None:
    low, high = result.top1_ci95
    screen.say(f"top-1              {result.top1:.1%} of {result.n} photos (95%: {low:.1%} to {high:.1%})")
    screen.say(f"top-5              {result.top5:.1%}")
    screen.say(f"balanced accuracy  {result.balanced_accuracy:.1%}")
    screen.say(f"macro F1           {result.macro_f1:.3f}")
    screen.say(f"log loss, ECE      {result.nll:.3f}, {result.ece:.3f}")
    for reason, count in result.excluded_by_reason.items():
        screen.note(f"left out: {count} photos ({reason})")
    for item in skipped[:_LISTED]:
        screen.note(f"  {item.path}: {item.reason}")
    if len(skipped) > _LISTED:
        screen.note(f"  and {len(skipped) - _LISTED} more")
    worst = sorted(result.per_class.items(), key=lambda item: item[1]["f1"])[:_WORST]
    rows = [(name, of["n"], of["precision"], of["recall"], of["f1"]) for name, of in worst]
    title = "the hardest classes" if len(result.per_class) > _WORST else None
    screen.table(("class", "photos", "precision", "recall", "F1"), rows, title=title)
    screen.answer(result.to_dict())
