"""``report.html``: one file that opens offline and shows how well a model did, where it errs, and on what."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from markupsafe import Markup, escape

import fieldmark
from fieldmark.report import curves, sections
from fieldmark.report.pictures import Pictures, Wanted, mask
from fieldmark.report.sections import answered_photos, evaluated, flat, large_photos, splits
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.results import Evaluation, Skipped

Look = Callable[[Sequence[str]], Mapping[str, np.ndarray]]
LARGE, SMALL = 160, 80  # sides of thumbnails, in pixels (shown at about half of that)
FACES = 200  # classes that get a small picture in the table
LISTED = 200  # skipped photos that are listed by name

#: How photos were judged that are no test photos: a title, what they are, where the number comes from, what it says.
_HOW = {
    "out of fold": {
        "title": "Out of fold",
        "photos": "training photos, by cross-validation",
        "by": "by cross-validation on the training photos",
        "means": "every training photo was named by a model that had not seen it",
    },
    "held out": {
        "title": "Held out",
        "photos": "photos held out of training",
        "by": "on the photos held out of training",
        "means": "these photos were held out of the weights, but they chose among them, so new photos may be named"
        " right a little less often",
    },
}


def write_report(
    path: str | Path,
    *,
    title: str,
    evaluation: Evaluation | None,
    settings: Mapping[str, Any],
    data: Mapping[str, Mapping[str, int]],
    skipped: Sequence[Skipped] = (),
    warnings: Sequence[str] = (),
    train_examples: Mapping[str, Sequence[str]] | None = None,
    prototypes: Sequence[Mapping[str, Any]] = (),
    thumbnails: bool = True,
    judged: Evaluation | None = None,
    how: str = "out of fold",
    training: Mapping[str, Any] | None = None,
    folds: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | None = None,
    root: Path | None = None,
    split: str = "test",
    look: Look | None = None,
) -> Path:
    """Write the page and return its path.

    ``evaluation``: on the photos of ``split`` ("all": of every one); where it is None, ``judged`` takes its place:
    answers to photos by weights that had not seen them, by ``how``: "out of fold" or "held out". ``training``:
    arguments of `fieldmark.report.curves.section`. ``folds``: of `fieldmark.train.trained.by_fold`. ``data``:
    {split: {class: photos}}. ``settings``: shown as a table, nested mappings joined by dots. ``seconds``: {what:
    how long it took}, shown with the headline numbers. ``train_examples``: photos of each class to lay beside
    mistakes; their paths, like those of the evaluation, are taken from ``root`` where given.
    ``prototypes``: rows of prototypes.csv. ``look``: paths -> where the model looked in the photos' middle squares
    [h, w], 0 to 1 (`fieldmark.explain.attention.in_middles`).
    ``thumbnails=False`` keeps every picture out of the page.

    Raises FieldmarkError where the page cannot be written.
    """
    shown = evaluation or judged
    context: dict[str, Any] = {
        "title": title,
        "version": fieldmark.__version__,
        "today": date.today().isoformat(),
        "shown": shown,
        "tested": evaluation is not None,
        "split_photos": "photos" if split == "all" else f"{split} photos",
        "has_train": "train" in data or "val" in data,
        "judged": judged if evaluation is not None else None,
        "how": _HOW[how],
        "folds": folds if folds and len(folds["folds"]) > 1 else None,
        "training": curves.section(**training) if training else None,
        "seconds": seconds or {},
        "splits": splits(data),
        "settings": list(flat(settings)),
        "skipped": list(skipped[:LISTED]),
        "n_skipped": len(skipped),
        "skipped_by_reason": Counter(item.reason for item in skipped).most_common(),
        "warnings": list(warnings),
        "has_pictures": thumbnails,
        "LARGE": LARGE,
        "SMALL": SMALL,
    }
    wanted: list[Wanted] = []
    masks: dict[str, str] = {}
    if shown is not None:
        context |= evaluated(shown, data, train_examples or {})
        wanted = [(photo, LARGE, None) for photo in large_photos(context)]
        # Answers out of fold are those of other models.
        if look and thumbnails and (evaluation is not None or how != "out of fold"):
            masks = _masks(look, answered_photos(context), root, context["warnings"])
    context["mask"] = masks.get
    context["has_masks"] = bool(masks)
    patches = sections.prototypes(prototypes)
    wanted += [(row["path"], SMALL, row["box"]) for one in patches for row in one["rows"]]
    if shown is not None:
        wanted += [(row["face"], SMALL, None) for row in context["classes"][:FACES] if row["face"]]
    context["picture"] = picture = Pictures(wanted if thumbnails else [], root).uri
    for one in patches:
        one["rows"] = [row for row in one["rows"] if picture(row["path"], SMALL, row["box"])]
    context["prototypes"] = [one for one in patches if one["rows"]]
    target = Path(path)
    try:
        target.write_text(_render(context), encoding="utf-8", errors="replace", newline="\n")
    except OSError as error:
        raise FieldmarkError(f"{target}: cannot write the report ({error.strerror or error})") from None
    return target


def _masks(look: Look, paths: list[str], root: Path | None, warnings: list[str]) -> dict[str, str]:
    """Path -> what dims its thumbnail but where the model looked. What goes wrong is a warning on the page."""
    full = {str(root / path) if root else path: path for path in paths}
    try:
        return {full[path]: mask(heat) for path, heat in look(list(full)).items()}
    except (
        FieldmarkError,
        ImportError,
        MemoryError,
        RuntimeError,
    ) as error:  # torch lacks memory, or is not whole
        warnings.append(f"where the model looks cannot be shown: {' '.join(str(error).split())[:200]}")
        return {}


def _render(context: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("fieldmark.report", "template")
    page = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page.filters |= {
        "percent": _percent,
        "score": _score,
        "number": _number,
        "duration": _duration,
        "breakable": _breakable,
        "file_name": lambda path: PurePath(path).name,
    }
    style, script = (loader.get_source(page, name)[0] for name in ("style.css", "script.js"))
    # The page runs this one script and nothing else, whatever a class name may smuggle in.
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    inline = {"style": Markup(style), "script": Markup(script), "script_hash": script_hash}
    return page.get_template("report.html").render(context, **inline)


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}%"


def _score(value: float) -> str:
    return _percent(value, 1 if 0.99 < value < 0.9995 else 0)


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line after an underscore."""
    return escape(name).replace("_", Markup("_<wbr>"))
