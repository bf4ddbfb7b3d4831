"""``fieldmark demo``: the main job from end to end on rendered photos, so that a newcomer sees it work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from fieldmark.cli.common import verb
from fieldmark.cli.screen import Screen

#: Marks a folder that the demo made and may make anew.
_TAG = ".fieldmark-demo"
_OWN = ("photos", "new_photos", "run", "predictions.csv")


@verb(
    examples="""
    fieldmark demo
    fieldmark demo --out /tmp/beetles --species 20 --photos 60
    """
)
def demo(
    screen: Screen,
    out: Annotated[Path, typer.Option(help="Where all of it goes.")] = Path("fieldmark-demo"),
    species: Annotated[int, typer.Option(metavar="N", min=2, help="Species of beetles.")] = 12,
    photos: Annotated[int, typer.Option(metavar="N", min=4, help="Photos of each.")] = 50,
    size: Annotated[int, typer.Option(metavar="PIXELS", min=64, max=1024, help="Side of a photo.")] = 256,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Other beetles.")] = 0,
) -> None:
    """Make look-alike photos, train, evaluate, predict: all at once.

    The photos are rendered beetles: species of a genus differ in one small mark. A demo folder that is
    there already is made anew.
    """
    from fieldmark.cli.predict import columns
    from fieldmark.data import lookalikes
    from fieldmark.recognizer import Recognizer
    from fieldmark.runtime.predictor import Predictor
    from fieldmark.runtime.tables import open_table

    _clear(out)
    pictures, new, run, table = (out / name for name in _OWN)
    with screen.progress() as progress:
        lookalikes.write(
            pictures,
            n_species=species,
            per_species=photos,
            size=size,
            seed=seed,
            unknown=0,
            progress=lambda done, total: progress("drawing beetles", done, total),
        )
        lookalikes.write(new, n_species=species, per_species=2, size=size, seed=seed + 1, unknown=0)
        drawn = screen.seconds()
        recognizer = Recognizer(seed=seed).fit(pictures, out=run, progress=progress)
        summary = recognizer.run
        predictor = Predictor.load(run / "model")
        paths = sorted(str(path) for path in new.rglob("*.jpg"))
        same = {"model": predictor.bundle.key}
        with open_table(table, columns("path", 5, pooled=False), same=same) as answers:
            for prediction in predictor.stream(paths):
                answers.write(prediction.to_row())
                progress("naming new photos", answers.saved, len(paths))

    score = (
        f", {summary['top1']:.1%} of the {summary['n_test']} test photos right" if summary["n_test"] else ""
    )
    screen.say(f"{pictures}: {species * photos} photos of {species} species of beetles ({drawn:.0f} s)")
    screen.say(f"{run}: a model trained on {summary['n_train']} of them in {summary['seconds']:.0f} s{score}")
    screen.say(f"{run / 'report.html'}: where it errs and why; open it in a browser")
    screen.say(f"{table}: its answers for the {len(paths)} photos in {new}")
    screen.say()
    screen.say("Next, on photos of yours (a folder for each class):")
    screen.say("  fieldmark train PHOTOS --out runs/mine")
    screen.say("  fieldmark predict runs/mine/model NEW_PHOTOS --out predictions.csv")
    screen.answer(
        {"out": out, "photos": species * photos, "report": run / "report.html", "predictions": table}
        | {"train": summary, "seconds": round(screen.seconds(), 3)}
    )


def _clear(out: Path) -> None:
    """Make room for the demo. A folder that holds other things is refused."""
    from fieldmark.runtime.errors import UsageError

    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / _TAG).exists())):
        raise UsageError(f"{out} holds something else: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / _TAG).touch()
    for name in _OWN:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
