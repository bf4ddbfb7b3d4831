"""``fieldmark similar``: the photos most like a given one; or how well a catalog's photos find their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fieldmark.cli.common import Engine, Model, Precision, Workers, model_folder, verb
from fieldmark.cli.screen import Screen

if TYPE_CHECKING:
    import numpy as np

    from fieldmark.runtime.predictor import Predictor


@verb(
    examples="""
    fieldmark similar runs/mine/model photo.jpg --in photos/ -k 10
    fieldmark similar runs/mine/model photo.jpg --in embeddings.parquet
    fieldmark similar runs/mine/model --in new_species/
    """
)
def similar(
    screen: Screen,
    model: Model,
    within: Annotated[
        str,
        typer.Option(
            "--in", metavar="SOURCE", show_default=False, help="Where to search: photos, or `embed`'s file."
        ),
    ],
    photo: Annotated[
        Path | None,
        typer.Argument(metavar="PHOTO", show_default=False, help="Without it the search itself is judged."),
    ] = None,
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, help="How many.")] = 5,
    engine: Engine = "auto",
    precision: Precision = "f32",
    workers: Workers = None,
) -> None:
    """Find the photos most like a given one.

    Without PHOTO: search every labelled photo among all others and tell how often it finds its own class
    (Recall@K, mAP), and how well same and different are told apart (ROC). The classes may be new ones.
    """
    from fieldmark.evaluate import retrieval
    from fieldmark.runtime.errors import FieldmarkError
    from fieldmark.runtime.predictor import Predictor

    predictor = Predictor.load(model_folder(model), engine=engine, precision=precision, workers=workers)
    query = None if photo is None else _query(predictor, photo)
    paths, labels, gallery = _gallery(screen, predictor, within)
    if photo is None or query is None:
        with_label = [place for place, label in enumerate(labels) if label is not None]
        if not with_label:
            raise FieldmarkError(f"{within} has no labels to judge by: name a PHOTO to search for")
        names = [str(labels[place]) for place in with_label]
        report = retrieval.retrieval_report(gallery[with_label], names)
        screen.say(f"{report.n_queries} photos of {report.n_classes} classes, each searched among the others")
        for at, value in report.recall_at.items():
            screen.say(f"Recall@{at:<6} {value:.1%}")
        screen.say(f"mAP@R         {report.map_at_r:.3f}")
        screen.say(f"ROC area      {report.roc_auc:.3f}")
        for far, tar in report.tar_at_far.items():
            screen.say(f"same found    {tar:.1%} where {far:.1%} of the different pass as same")
        screen.answer(report.to_dict())
        return
    index, cosines = retrieval.similar(query, gallery, min(k + 1, len(gallery)))
    own = photo.resolve()
    found = [
        {"path": paths[place], "label": labels[place], "similarity": float(cosine)}
        for place, cosine in zip(index[0], cosines[0], strict=True)
        if Path(paths[place]).resolve() != own
    ][:k]
    screen.table(
        ("similarity", "label", "photo"), [(one["similarity"], one["label"], one["path"]) for one in found]
    )
    screen.answer({"photo": photo, "similar": found})


def _query(predictor: Predictor, photo: Path) -> np.ndarray:
    """The photo's embedding [1, D]. Raises FieldmarkError where it cannot be read."""
    from fieldmark.runtime.errors import FieldmarkError

    (answer,) = predictor.answers([str(photo)], "embedding")
    if answer.values is None:
        raise FieldmarkError(f"{photo}: {answer.error}")
    return answer.values[None]


def _gallery(
    screen: Screen, predictor: Predictor, source: str
) -> tuple[list[str], list[str | None], np.ndarray]:
    """Paths, labels and embeddings [N, D] of all photos that can be read."""
    import numpy as np

    from fieldmark.runtime.errors import FieldmarkError

    if (
        Path(source).suffix.lower() == ".parquet"
        and (stored := _stored(Path(source), predictor.bundle.key)) is not None
    ):
        return stored
    from fieldmark.cli.embed import read_photos, rows

    catalog = read_photos([source])
    paths: list[str] = []
    labels: list[str | None] = []
    vectors = []
    with screen.progress() as progress:
        for done, row in enumerate(rows(predictor, catalog), 1):
            progress("photos", done, len(catalog))
            if row.get("embedding") is not None:
                paths.append(row["path"])
                labels.append(row["label"])
                vectors.append(row["embedding"])
    if not vectors:
        raise FieldmarkError(f"no photo in {source} can be read")
    if len(vectors) < len(catalog):
        screen.note(f"{len(catalog) - len(vectors)} photos could not be read")
    return paths, labels, np.stack(vectors)


def _stored(path: Path, model: str) -> tuple[list[str], list[str | None], np.ndarray] | None:
    """What ``fieldmark embed`` wrote with this model; None for another Parquet table (a catalog)."""
    import numpy as np
    from pyarrow import ArrowInvalid, parquet

    from fieldmark.runtime.errors import FieldmarkError

    try:
        wanted = ["path", "label", "embedding", "model"]
        if not set(wanted) <= set(parquet.read_schema(path).names):
            return None
        table = parquet.read_table(path, columns=wanted)
    except ArrowInvalid as error:
        raise FieldmarkError(f"{path} cannot be read as Parquet") from error
    table = table.filter(table["embedding"].is_valid())
    if not len(table):
        raise FieldmarkError(f"{path} holds no embeddings")
    if others := set(table["model"].unique().to_pylist()) - {model}:  # their cosines would mean nothing
        raise FieldmarkError(
            f"{path} holds embeddings of another model ({min(others)}, this is {model}): write them with this one"
        )
    flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors = np.asarray(flat, np.float32).reshape(len(table), -1)
    return table["path"].to_pylist(), table["label"].to_pylist(), vectors
