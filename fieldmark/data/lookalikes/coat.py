"""Colours, and who wears them. All are linear RGB in 0..1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fieldmark.data.lookalikes.anatomy import Array
from fieldmark.data.lookalikes.relief import Relief

Colour = tuple[float, float, float]

#: How often head and pronotum have another colour than the wing cases.
TWO_TONED = 0.35


@dataclass(frozen=True)
class Coat:
    """A body's colour from the front and at a slant, how metallic it is, which pigments contrast with it."""

    front: Colour
    slant: Colour
    metal: float
    marks: tuple[str, ...]


PIGMENTS: dict[str, Colour] = {
    "cream": (0.80, 0.70, 0.46),
    "yellow": (0.86, 0.58, 0.07),
    "orange": (0.86, 0.30, 0.03),
    "scarlet": (0.68, 0.06, 0.03),
}
COATS: dict[str, Coat] = {
    "black": Coat((0.013, 0.013, 0.016), (0.03, 0.045, 0.08), 0.25, ("cream", "yellow", "orange", "scarlet")),
    "bronze": Coat((0.085, 0.055, 0.018), (0.02, 0.075, 0.04), 0.8, ("cream", "yellow", "orange")),
    "green": Coat((0.008, 0.105, 0.028), (0.010, 0.045, 0.13), 1.0, ("cream", "yellow", "orange", "scarlet")),
    "blue": Coat((0.010, 0.035, 0.13), (0.05, 0.015, 0.12), 1.0, ("cream", "yellow", "orange", "scarlet")),
    "violet": Coat((0.055, 0.012, 0.085), (0.015, 0.03, 0.13), 1.0, ("cream", "yellow", "orange")),
    "copper": Coat((0.150, 0.040, 0.012), (0.03, 0.07, 0.02), 1.0, ("cream", "yellow")),
    "chestnut": Coat((0.085, 0.024, 0.009), (0.05, 0.02, 0.008), 0.2, ("cream", "yellow")),
}


LEGS: dict[str, Colour] = {
    "black": (0.018, 0.016, 0.016),
    "brown": (0.070, 0.030, 0.012),
    "tawny": (0.160, 0.075, 0.022),
}


@dataclass(frozen=True)
class Specimen:
    """What makes an individual. None of it but the mark says anything about its species."""

    genus: str
    mark: str
    coat: str  # of the wing cases
    fore: str  # of the head and the pronotum
    legs: str
    pigment: str
    shift: Colour  # multiplies the coats' colours
    fade: Colour  # multiplies the pigment
    seed_pose: np.random.SeedSequence
    seed_mark: np.random.SeedSequence
    seed_wear: np.random.SeedSequence


def specimen(genus: str, mark: str, seeds: list[np.random.SeedSequence]) -> Specimen:
    """Draw an individual's colours from the first seed; the others are for its pose, its mark, its wear."""
    rng = np.random.default_rng(seeds[0])
    coat = str(rng.choice(list(COATS)))
    other, two_toned = str(rng.choice(list(COATS))), rng.random() < TWO_TONED
    fore = other if two_toned else coat
    marks = [name for name in COATS[coat].marks if name in COATS[fore].marks]
    pigment = marks[int(rng.integers(len(marks)))]
    legs = str(rng.choice(list(LEGS)))
    r, g, b = (float(v) for v in np.exp(rng.normal(0, 0.16, 3) + rng.normal(0, 0.15)))
    fr, fg, fb = (float(v) for v in np.exp(rng.normal(0, 0.07, 3) + rng.normal(-0.12, 0.16)))
    return Specimen(genus, mark, coat, fore, legs, pigment, (r, g, b), (fr, fg, fb), *seeds[1:])


@dataclass(frozen=True)
class Paint:
    """A specimen's colours over the relief: ``front`` and ``slant`` per channel, ``metal``; pigment; legs."""

    front: list[Array]
    slant: list[Array]
    metal: Array
    pigment: Array
    legs: Array


def palette(one: Specimen, s: Relief) -> Paint:
    """Spread a specimen's colours over its body."""
    wing, fore = COATS[one.coat], COATS[one.fore]

    def blend(back: float, ahead: float, shift: float = 1.0) -> Array:
        if back == ahead:
            return np.array(back * shift, np.float32)
        return np.float32(ahead * shift) + np.float32((back - ahead) * shift) * s.wing

    front = [blend(*pair) for pair in zip(wing.front, fore.front, one.shift, strict=True)]
    slant = [blend(*pair) for pair in zip(wing.slant, fore.slant, one.shift, strict=True)]
    pigment = np.clip(np.array(PIGMENTS[one.pigment]) * one.fade, 0, 0.95).astype(np.float32)
    return Paint(front, slant, blend(wing.metal, fore.metal), pigment, np.array(LEGS[one.legs], np.float32))
