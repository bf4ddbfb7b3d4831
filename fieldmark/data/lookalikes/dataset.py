"""Look-alikes as a folder of photos with all that is known about each of them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fieldmark.data.lookalikes.background import NAMES
from fieldmark.data.lookalikes.scene import Picture, render
from fieldmark.data.lookalikes.species import Species, held_out, species
from fieldmark.runtime.errors import FieldmarkError, UsageError
from fieldmark.runtime.machine import cores

#: Shares of train, val and test.
FRACTIONS = (0.6, 0.1, 0.3)
JPEG_QUALITY = 92

Job = tuple[Species, int, str, str | None]  # species, index, split, planted background


def write(
    root: str | Path,
    *,
    n_species: int = 12,
    per_species: int = 50,
    size: int = 256,
    seed: int = 0,
    unknown: int = 2,
    shortcut: bool = False,
    style: str = "photo",
    masks: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``per_species`` photos of each of ``n_species`` under ``root`` and return it.

    - ``root/metadata.csv``: file_name, label, split (train, val, test: 60/10/30), genus, family, the mark's
      and the beetle's boxes in pixels, attributes (``attribute_…``), caption, nuisance. ``root/parts.csv``:
      file_name, part, x, y, visible.
    - ``root/unknown``: the same for ``unknown`` species that are not in the catalog above; by turns a look-
      alike of a known genus and one of a new genus.
    - ``shortcut``: each species has a background of its own in train and val, and another species' in test,
      so that what the shortcut costs can be measured (column ``planted`` names the species' own).
    - ``masks``: also ``root/masks`` with one PNG a photo (0 ground, 1 beetle, 2 mark), named in column
      ``mask``.

    The same arguments give the same bytes, whatever ``workers`` (threads; all cores when None) and order.
    ``progress(done, total)`` is called after every photo. Raises UsageError for a wrong number,
    FieldmarkError when the folder cannot be written.
    """
    if per_species < 1:
        raise UsageError(f"look-alikes: per_species is {per_species}, at least 1 is needed")
    known = species(n_species)
    root = Path(root)
    own = planted(known)
    parts = {root: list(_plan(own, known, per_species, shortcut))}
    strangers = held_out(known, unknown)
    if strangers:
        parts[root / "unknown"] = [(one, i, "test", None) for one in strangers for i in range(per_species)]
    total, done = sum(map(len, parts.values())), 0
    try:
        for folder, jobs in parts.items():
            rows, points = [], []
            for row, spots in _draw(folder, jobs, own, size, seed, style, masks, workers or cores()):
                rows.append(row)
                points += spots
                done += 1
                if progress:
                    progress(done, total)
            _table(folder / "metadata.csv", rows)
            _table(folder / "parts.csv", points)
    except OSError as error:
        raise FieldmarkError(f"look-alikes cannot be written to {root}: {error.strerror or error}") from error
    return root


def splits(n: int) -> list[str]:
    """The split of each of a species' n photos."""
    train = max(1, round(n * FRACTIONS[0]))
    val = round(n * FRACTIONS[1])
    return [("train" if i < train else "val" if i < train + val else "test") for i in range(n)]


def planted(known: list[Species]) -> dict[str, str]:
    """The background that gives each species away (distinct for up to 36 species)."""
    return {one.name: NAMES[i % len(NAMES)] for i, one in enumerate(known)}


def _plan(own: dict[str, str], known: list[Species], n: int, shortcut: bool) -> Iterator[Job]:
    for one in known:
        others = [place for place in dict.fromkeys(own.values()) if place != own[one.name]] or list(NAMES[1:])
        for i, split in enumerate(splits(n)):
            place = own[one.name] if split != "test" else others[i % len(others)]
            yield one, i, split, place if shortcut else None


def _draw(
    folder: Path,
    jobs: list[Job],
    own: dict[str, str],
    size: int,
    seed: int,
    style: str,
    masks: bool,
    workers: int,
) -> Iterable[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """A row and its parts' rows for each job, in order. Threads do: most time is spent outside of Python."""
    for one in {job[0] for job in jobs}:
        (folder / _slug(one.name)).mkdir(parents=True, exist_ok=True)
        if masks:
            (folder / "masks" / _slug(one.name)).mkdir(parents=True, exist_ok=True)

    def draw(job: Job) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        one, index, split, place = job
        picture = render(one, index, size=size, seed=seed, shortcut=place, style=style)
        name = f"{_slug(one.name)}/{index:04d}"
        picture.image.save(folder / f"{name}.jpg", quality=JPEG_QUALITY)
        row = {"file_name": f"{name}.jpg", "label": one.name, "split": split, **_row(picture)}
        if place is not None:
            row["planted"] = own[one.name]
        if masks:
            row["mask"] = f"masks/{name}.png"
            levels = picture.object_mask.astype(np.uint8) + picture.mark_mask
            Image.fromarray(levels).save(folder / row["mask"])
        spots = [
            {"file_name": row["file_name"], "part": part, "x": x, "y": y, "visible": visible}
            for part, (x, y, visible) in picture.parts.items()
        ]
        return row, spots

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(draw, jobs)


def _row(picture: Picture) -> dict[str, Any]:
    one = picture.species
    row: dict[str, Any] = {"genus": one.genus, "family": one.family}
    for what, box in (("mark", picture.mark_box), ("box", picture.body_box)):
        row |= {f"{what}_{side}": value for side, value in zip("xywh", box, strict=True)}
    row |= {f"attribute_{name}": value for name, value in picture.attributes.items()}
    return {**row, "caption": picture.caption, **picture.nuisance}


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def _table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
