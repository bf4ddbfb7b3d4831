"""``fieldmark locate``: where in each photo the thing is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldmark.cli.common import Model, Overwrite, Photos, Resume, model_folder, shared, verb
from fieldmark.cli.screen import Screen

if TYPE_CHECKING:
    from fieldmark.explain.locate import Located
    from fieldmark.runtime.tables import Kind

_BOX = ("box_x", "box_y", "box_w", "box_h")
_MOST, _THRESHOLD = 5, 0.2
COLUMNS: dict[str, Kind] = {
    "path": "text",
    "label": "text",
    "score": "number",
    **dict.fromkeys(_BOX, "number"),
    "box_score": "number",
    "boxes": "text",
    "mask": "text",
    "error": "text",
}


@verb(
    examples="""
    fieldmark locate runs/mine/model new/ --out boxes.csv
    fieldmark locate runs/mine/model new/ --out boxes.csv --masks masks/ --most 1
    """
)
def locate(
    screen: Screen,
    model: Model,
    source: Photos,
    out: Annotated[Path, typer.Option(help="A .csv, .jsonl or .parquet file.", show_default=False)],
    masks: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a mask a photo (white: the thing) here, too.")
    ] = None,
    most: Annotated[int, typer.Option(metavar="N", min=1, help="Boxes a photo.")] = _MOST,
    threshold: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            min=0.01,
            max=0.99,
            help="Of the strongest place; less makes boxes larger. Of a detector: a box's least score.",
        ),
    ] = _THRESHOLD,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Find the things in photos: with a detector (`train --method fcos`, taught by boxes), or by where any other model
    looks, for which no boxes were needed.

    A row a photo: label, score, the strongest box (pixels of the upright photo, as box_x, box_y, box_w, box_h) and, in
    the column boxes, all of them as [x, y, w, h, score, label]. `train` reads either. --resume goes on with the same
    model, --most, --threshold and use of --masks only; the columns model and, where it is not the default, setting say
    which.
    """
    from fieldmark.explain.locate import Locator
    from fieldmark.runtime.bundle import Bundle
    from fieldmark.runtime.catalog import Catalog
    from fieldmark.runtime.tables import check_table, open_table

    check_table(out, COLUMNS, resume=resume, overwrite=overwrite)
    catalog = Catalog.read(source if len(source) > 1 else source[0], labelled=False)
    bundle = Bundle(model_folder(model))
    locator = Locator(bundle, most, threshold)
    same = shared(
        bundle.key,
        most=(most, _MOST),
        threshold=(threshold, _THRESHOLD),
        masks=(masks is not None, False),
    )
    with (
        open_table(out, COLUMNS, same=same, resume=resume, overwrite=overwrite) as table,
        screen.progress() as progress,
    ):
        before, errors = table.saved, 0
        paths = [path for path in dict.fromkeys(catalog.paths) if path not in table]
        for row in rows(locator(paths), masks):
            table.write(row)
            errors += row["error"] is not None
            progress("photos", table.saved, len(catalog) + len(catalog.skipped))
        for item in catalog.skipped:
            if item.path not in table:
                table.write({"path": item.path, "error": item.reason})
                errors += 1
    count = table.saved - before
    screen.note(f"{count} photos to {out} in {screen.seconds():.1f} s")
    if errors:
        screen.note(f"{errors} photos could not be read; the column error says so")
    screen.answer({"out": out, "photos": count, "errors": errors, "seconds": round(screen.seconds(), 3)})


def rows(located: Iterator[Located], masks: Path | None) -> Iterator[dict[str, Any]]:
    """Rows of ``COLUMNS``; masks are written on the way."""
    for one in located:
        boxes = [
            [
                *(round(v, 1) for v in (left, top, right - left, bottom - top)),
                round(thing.score, 4),
                thing.label,
            ]
            for thing in one.things
            for left, top, right, bottom in [thing.box]
        ]
        first = boxes[0][:5] if boxes else [None] * 5
        yield {
            "path": one.path,
            "label": one.label,
            "score": one.score,
            **dict(zip((*_BOX, "box_score"), first, strict=True)),
            "boxes": json.dumps(boxes, ensure_ascii=False),
            "mask": _write(one, masks),
            "error": one.error or None,
        }


def _write(one: Located, masks: Path | None) -> str | None:
    from PIL import Image

    if masks is None or one.mask is None:
        return None
    masks.mkdir(parents=True, exist_ok=True)
    name = hashlib.blake2b(one.path.encode(errors="surrogateescape"), digest_size=4).hexdigest()
    target = masks / f"{Path(one.path).stem[:80]}-{name}.png"  # photos of two folders may have one name
    Image.fromarray(one.mask).save(target)
    return str(target)
