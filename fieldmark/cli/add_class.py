"""``fieldmark add-class``: one more class, in seconds, without the old photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fieldmark.cli.common import Model, Overwrite, check_free, check_own, model_folder, verb
from fieldmark.cli.screen import Screen

if TYPE_CHECKING:
    from fieldmark.recognizer import Recognizer

Changed = Annotated[
    Path | None, typer.Option(help="Write the changed model here.  [default: change MODEL itself]")
]
Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="The class.")]


@verb(
    examples="""
    fieldmark add-class runs/mine/model "Cetonia aurata" new/*.jpg
    fieldmark add-class runs/mine/model "Cetonia aurata" new_photos/ --out models/with-cetonia
    """
)
def add_class(
    screen: Screen,
    model: Model,
    name: Name,
    photos: Annotated[
        list[str],
        typer.Argument(metavar="PHOTOS", show_default=False, help="Photos of it, or folders of them."),
    ],
    out: Changed = None,
    overwrite: Overwrite = False,
) -> None:
    """Teach a model one more class, without the old photos.

    The model keeps the mean of every class and their common spread; that is all it needs.
    """
    from fieldmark.recognizer import Recognizer
    from fieldmark.runtime.catalog import Catalog

    folder = model_folder(model)
    target = place(folder, out, overwrite)
    catalog = Catalog.read(photos, labelled=False)
    recognizer = Recognizer.load(folder)
    skipped = recognizer.add_class(name, catalog.paths)
    save(screen, recognizer, target)
    classes, learned = len(recognizer.classes), len(catalog) - len(skipped)
    for item in skipped:
        screen.note(f"left out: {item.path} ({item.reason})")
    screen.say(f"{target} now knows {classes} classes; {name} is new ({learned} photos)")
    screen.answer(
        {"model": target, "added": name, "photos": learned, "skipped": len(skipped), "classes": classes}
    )


def place(folder: Path, out: Path | None, overwrite: bool) -> Path:
    """Where the changed model goes: ``out``, or in place of the old (saving swaps folders in one step)."""
    if out is None:
        return folder
    check_free(out, overwrite=overwrite)
    check_own(out, ("config.json",))
    return out


def save(screen: Screen, recognizer: Recognizer, target: Path) -> None:
    """Save the changed model; where that is the folder one is in, say how to see it."""
    here = target.resolve() == Path.cwd()
    recognizer.save(target)
    if here:
        screen.note('the folder you are in was replaced: cd "$PWD" goes to the new one')
