"""Draw the README's look-alikes anew: ``python docs/lookalikes.py``.

A row is a genus; from left to right three species of it, each twice. ``lookalikes_marks.png`` shows the same
pictures with the mark framed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fieldmark.data.lookalikes import Picture, Species, render, species

FOLDER = Path(__file__).resolve().parent / "images"
ROWS, SIDE, GAP, SEED = 4, 168, 4, 11


def main() -> None:
    by_genus: dict[str, list[Picture]] = {}
    for one in species(3 * ROWS):
        by_genus.setdefault(one.genus, []).extend(_two(one))
    FOLDER.mkdir(exist_ok=True)
    palette = _palette([picture for row in by_genus.values() for picture in row])
    for name, framed in (("lookalikes", False), ("lookalikes_marks", True)):
        sheet = Image.new("RGB", (6 * (SIDE + GAP) - GAP, ROWS * (SIDE + GAP) - GAP), "white")
        for row, pictures in enumerate(by_genus.values()):
            for column, picture in enumerate(pictures):
                sheet.paste(_tile(picture, framed), (column * (SIDE + GAP), row * (SIDE + GAP)))
        path = FOLDER / f"{name}.png"
        sheet.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
        print(f"{path.name}: {path.stat().st_size // 1000} kB")


def _two(one: Species) -> list[Picture]:
    """The first two pictures of a species with nothing in front, of different colours on different grounds."""
    found: list[Picture] = []
    index = 0
    while len(found) < 2:
        picture = render(one, index, size=2 * SIDE, seed=SEED)
        index += 1
        if picture.nuisance["occluded"] or picture.nuisance["blur"] > 0.001:
            continue
        if not any(set(_look(picture)) & set(_look(known)) for known in found):
            found.append(picture)
    return found


def _look(picture: Picture) -> tuple[str, str]:
    return picture.attributes["colour"], picture.nuisance["background"].rsplit(maxsplit=1)[0]


def _tile(picture: Picture, framed: bool) -> Image.Image:
    """The beetle large, and on demand its mark in a frame."""
    x, y, w, h = picture.body_box
    image = picture.image
    side = min(image.width, round(1.06 * max(w, h)))
    left, top = (
        min(max(0, round(middle - side / 2)), image.width - side) for middle in (x + w / 2, y + h / 2)
    )
    tile = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    if framed:
        x, y, w, h = picture.mark_box
        zoom = SIDE / side
        box = [(x - left) * zoom, (y - top) * zoom, (x + w - left) * zoom, (y + h - top) * zoom]
        pen = ImageDraw.Draw(tile)
        for grow, colour in ((6, "black"), (5, "white"), (4, "white"), (3, "black")):
            pen.rectangle((box[0] - grow, box[1] - grow, box[2] + grow, box[3] + grow), outline=colour)
    return tile


def _palette(pictures: list[Picture]) -> Image.Image:
    """256 colours in which beetles count four times as much as grounds, and marks forty times."""
    colours = [np.zeros((200, 3), np.uint8), np.full((200, 3), 255, np.uint8)]
    for picture in pictures:
        pixels = np.asarray(picture.image)
        colours += [pixels[::2, ::2].reshape(-1, 3), pixels[picture.object_mask]]
        colours += [pixels[picture.mark_mask]] * 10
    flat = np.concatenate(colours)
    flat = flat[: len(flat) // 512 * 512].reshape(-1, 512, 3)
    return Image.fromarray(flat).quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)


if __name__ == "__main__":
    main()
