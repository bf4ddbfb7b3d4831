"""``fieldmark remove-class``: a model forgets a class."""

from __future__ import annotations

from fieldmark.cli.add_class import Changed, Name, place, save
from fieldmark.cli.common import Model, Overwrite, model_folder, verb
from fieldmark.cli.screen import Screen


@verb(
    examples="""
    fieldmark remove-class runs/mine/model "Cetonia aurata"
    fieldmark remove-class runs/mine/model "Cetonia aurata" --out models/without-cetonia
    """
)
def remove_class(
    screen: Screen, model: Model, name: Name, out: Changed = None, overwrite: Overwrite = False
) -> None:
    """Make a model forget a class. Nothing is trained again."""
    from fieldmark.recognizer import Recognizer

    folder = model_folder(model)
    target = place(folder, out, overwrite)
    recognizer = Recognizer.load(folder)
    recognizer.remove_class(name)
    save(screen, recognizer, target)
    classes = len(recognizer.classes)
    screen.say(f"{target} now knows {classes} classes; {name} is forgotten")
    screen.answer({"model": target, "removed": name, "classes": classes})
