"""A picture of one specimen, and all that is known about it.

Picture ``index`` of a species depends on nothing but (seed, species, index). Colours, pose, mark, wear, view,
background and what is in front have a random stream each: to change one leaves the others as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, radians, sin
from typing import Any

import numpy as np
from PIL import Image

from fieldmark.data.lookalikes import background, cover
from fieldmark.data.lookalikes.anatomy import BODIES, Array, landmarks
from fieldmark.data.lookalikes.coat import Specimen, specimen
from fieldmark.data.lookalikes.draw import sprite
from fieldmark.data.lookalikes.lens import Box, box, compose
from fieldmark.data.lookalikes.species import Species, find_mark
from fieldmark.data.lookalikes.view import View, density_for, look, project, settle, warp
from fieldmark.runtime.errors import UsageError

#: The smallest and the largest picture's side in pixels.
SIZES = (64, 1024)
STYLES = ("photo", "drawing")
#: At least this part of the mark's pixels stays uncovered.
VISIBLE = 0.6


@dataclass(frozen=True)
class Picture:
    """A rendered picture and its truth. Boxes are (x, y, width, height) in pixels.

    ``mark_mask`` and ``object_mask`` (the whole beetle) are [size, size] bool and hold what is visible; the
    boxes enclose them. ``parts`` maps a name to (x, y, visible). ``attributes`` describe the beetle,
    ``nuisance`` the rest (``View``, background, style, occluded, mark_visible: the part of the mark's
    pixels that is uncovered).
    """

    image: Image.Image
    species: Species
    mark_box: Box
    body_box: Box
    parts: dict[str, tuple[float, float, bool]]
    mark_mask: Array
    object_mask: Array
    attributes: dict[str, str]
    caption: str
    nuisance: dict[str, Any]


def render(
    species: Species,
    index: int,
    *,
    size: int = 256,
    seed: int = 0,
    shortcut: str | None = None,
    style: str = "photo",
    mark: str | None = None,
) -> Picture:
    """Render picture ``index`` of a species, ``size`` pixels a side.

    ``shortcut`` names the background (one of ``background.NAMES``) instead of a random one; ``style`` is
    "photo" or "drawing"; ``mark`` draws another mark than the species' own on the very same picture: a
    counterfactual twin. Raises UsageError for anything unknown.
    """
    _check(size, style, shortcut)
    streams = np.random.SeedSequence(seed, spawn_key=(species.number, index)).spawn(7)
    view = look(np.random.default_rng(streams[4]), BODIES[species.genus].size)
    ground_rng = np.random.default_rng(streams[5])
    drawn = str(ground_rng.choice(background.NAMES))
    place = shortcut or drawn
    beetle = specimen(species.genus, mark or species.mark, streams[:4])
    azimuth, rise = radians(view.light - 90), np.tan(radians(view.elevation))
    light = _unit(cos(azimuth), sin(azimuth), rise)
    turned = azimuth - radians(view.rotation)
    flat = sprite(beetle, density_for(view, size), _unit(cos(turned), sin(turned), rise), view.sun, style)
    matrix, length = settle(view, beetle.genus, flat.points, size)
    pixels, mark_cover = warp(flat, matrix, size)
    ground = background.ground(ground_rng, place, size, bool(light[0] > 0), style)
    blade = cover.choose(np.random.default_rng(streams[6]), mark_cover, pixels[3], VISIBLE, style)
    image = compose(ground, pixels, blade, light, view, style)
    seen = np.ones((size, size), bool) if blade is None else blade[3] < 128
    mark_mask, object_mask = (mark_cover > 127) & seen, (pixels[3] > 127) & seen
    share = float(mark_mask.sum() / max(1, (mark_cover > 127).sum()))
    attributes = _attributes(species, beetle)
    parts = {**landmarks(beetle.genus), **{k: v for k, v in flat.points.items() if "knee" not in k}}
    return Picture(
        image=image,
        species=species,
        mark_box=box(mark_mask),
        body_box=box(object_mask),
        parts=_visible(parts, matrix, seen),
        mark_mask=mark_mask,
        object_mask=object_mask,
        attributes=attributes,
        caption=_caption(attributes, place, style),
        nuisance=_nuisance(view, length) | _words(place, style, blade is not None, share),
    )


def _check(size: int, style: str, shortcut: str | None) -> None:
    if not SIZES[0] <= size <= SIZES[1]:
        raise UsageError(f"look-alikes: size {size} is not between {SIZES[0]} and {SIZES[1]} pixels")
    if style not in STYLES:
        raise UsageError(f'look-alikes: style "{style}" is unknown, choose one of {", ".join(STYLES)}')
    if shortcut is not None and shortcut not in background.NAMES:
        raise UsageError(f'look-alikes: background "{shortcut}" is unknown, e.g. "{background.NAMES[0]}"')


def _unit(x: float, y: float, z: float) -> Array:
    v = np.array([x, y, z], np.float32)
    return v / np.linalg.norm(v)


def _visible(points: dict[str, tuple[float, float]], matrix: Array, seen: Array) -> dict[str, tuple]:
    found = {}
    for (name, _), (x, y) in zip(
        points.items(), project(matrix, np.array(list(points.values()))), strict=True
    ):
        inside = 0 <= x < len(seen) and 0 <= y < len(seen)
        found[name] = (round(float(x), 2), round(float(y), 2), bool(inside and seen[int(y), int(x)]))
    return found


def _attributes(species: Species, beetle: Specimen) -> dict[str, str]:
    mark = find_mark(beetle.mark)
    return {
        **species.attributes,
        "mark": mark.name,
        "mark_kind": mark.kind,
        "mark_place": mark.place,
        "mark_colour": beetle.pigment,
        "colour": beetle.coat,
        "fore_colour": beetle.fore,
        "leg_colour": beetle.legs,
    }


def _nuisance(view: View, length: float) -> dict[str, Any]:
    return {
        **{name: round(float(value), 4) for name, value in vars(view).items()},
        "length": round(length, 4),
    }


def _words(place: str, style: str, occluded: bool, share: float) -> dict[str, Any]:
    return {"background": place, "style": style, "occluded": occluded, "mark_visible": round(share, 4)}


def _caption(attributes: dict[str, str], place: str, style: str) -> str:
    what = "A drawing of a" if style == "drawing" else "A"
    seen = find_mark(attributes["mark"]).phrase.format(attributes["mark_colour"])
    fore = "" if attributes["fore_colour"] == attributes["colour"] else attributes["fore_colour"] + " "
    ground = place.rsplit(maxsplit=1)[0]
    thing = "a " if ground in ("leaf", "petal", "dry leaf") else ""
    where = "" if style == "drawing" else f" and sits on {thing}{ground}"
    return (
        f"{what} {attributes['colour']} beetle with a {attributes['body']} body, "
        f"a {attributes['pronotum']} {fore}pronotum and {attributes['antennae']} antennae; "
        f"it has {seen}{where}."
    )
