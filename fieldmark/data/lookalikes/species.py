"""The made-up taxonomy: a genus is a body shape, a species is one small mark.

Within a genus, colours, poses and backgrounds are drawn from the same distributions: nothing but the mark
tells the species apart. The same marks recur in other genera, so a mark alone does not give the species away.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fieldmark.runtime.errors import UsageError


@dataclass(frozen=True)
class Genus:
    """A body shape. ``ending`` is what its species' names end in ("a" or "us")."""

    name: str
    family: str
    ending: str
    body: str
    pronotum: str
    antennae: str


@dataclass(frozen=True)
class Mark:
    """A small mark: the stem of the species' name, what it is, where it sits, and how a person says it.

    ``phrase`` takes the mark's colour: "one {} band across the middle of the wing cases".
    """

    name: str
    stem: str
    kind: str
    place: str
    phrase: str


@dataclass(frozen=True)
class Species:
    """One species: its name, its place in the tree (species, genus, family), its mark and its attributes."""

    name: str
    genus: str
    family: str
    mark: str
    number: int  # its place in the full list: seeds its pictures, so it never changes
    attributes: dict[str, str] = field(hash=False)

    @property
    def lineage(self) -> tuple[str, str, str]:
        """From the finest rank to the coarsest: species, genus, family."""
        return self.name, self.genus, self.family


RANKS = ("species", "genus", "family")

GENERA = (
    Genus("Carabella", "Carabellidae", "a", "slender oval", "heart-shaped", "long thread-like"),
    Genus("Longicerus", "Carabellidae", "us", "long parallel-sided", "spined", "very long swept-back"),
    Genus("Scarabula", "Scarabulidae", "a", "stout", "broad", "short fan-tipped"),
    Genus("Rotundella", "Scarabulidae", "a", "round domed", "collar-like", "short clubbed"),
    Genus("Gemmarius", "Gemmariidae", "us", "torpedo-shaped", "wide", "short toothed"),
    Genus("Rostrina", "Gemmariidae", "a", "pear-shaped long-snouted", "narrow", "elbowed"),
)

MARKS = (
    Mark("band", "fasciat", "band", "wing cases", "one {} band across the middle of the wing cases"),
    Mark("spots", "bimaculat", "spot", "wing cases", "a pair of {} spots on the wing cases"),
    Mark("rear spots", "posticat", "spot", "wing cases", "a pair of {} spots near the rear end"),
    Mark("antenna tips", "antennat", "tip", "antennae", "{} antenna tips"),
    Mark("pronotum dot", "notat", "spot", "pronotum", "one {} dot on the pronotum"),
    Mark("edge", "marginat", "edge", "wing cases", "{} outer edges of the wing cases"),
    Mark("tail", "caudat", "tip", "wing cases", "one {} tip at the rear end of the wing cases"),
    Mark("shoulders", "humerat", "spot", "wing cases", "{} shoulder patches"),
    Mark("seam", "suturat", "stripe", "wing cases", "one {} stripe along the seam"),
    Mark("collar", "torquat", "band", "pronotum", "one {} collar at the front of the pronotum"),
    Mark("thighs", "femorat", "legs", "legs", "{} thighs"),
    Mark("chevron", "angulat", "chevron", "wing cases", "one {} chevron on the wing cases"),
)

_BLOCK = (4, 3)  # the list opens with 4 genera of 3 species each; every further block adds as many


def _all() -> list[Species]:
    found = []
    for g, genus in enumerate(GENERA):
        for turn in range(len(MARKS)):
            mark = MARKS[(g + turn) % len(MARKS)]
            attributes = {
                "body": genus.body,
                "pronotum": genus.pronotum,
                "antennae": genus.antennae,
                "mark": mark.name,
                "mark_kind": mark.kind,
                "mark_place": mark.place,
            }
            order = (turn // _BLOCK[1], g // _BLOCK[0], turn, g)
            found.append((order, genus, mark, attributes))
    found.sort(key=lambda entry: entry[0])
    return [
        Species(f"{genus.name} {mark.stem}{genus.ending}", genus.name, genus.family, mark.name, i, attributes)
        for i, (_, genus, mark, attributes) in enumerate(found)
    ]


_SPECIES = _all()
_MARK = {mark.name: mark for mark in MARKS}


def species(n: int | None = None) -> list[Species]:
    """The first ``n`` species (all, without ``n``), always in the same order.

    The first twelve are four genera of three species each, the next six bring two more genera.
    """
    if n is None:
        return list(_SPECIES)
    if not 1 <= n <= len(_SPECIES):
        raise UsageError(f"look-alikes: {n} species asked for, there are 1 to {len(_SPECIES)}")
    return _SPECIES[:n]


def held_out(known: list[Species], n: int) -> list[Species]:
    """``n`` species that are not ``known``: by turns of a known and of a new genus, while both last."""
    names, genera = {one.name for one in known}, {one.genus for one in known}
    rest = [one for one in _SPECIES if one.name not in names]
    near = [one for one in rest if one.genus in genera]
    far = [one for one in rest if one.genus not in genera]
    if not 0 <= n <= len(rest):
        raise UsageError(f"look-alikes: {n} unknown species asked for, {len(rest)} are left")
    chosen: list[Species] = []
    while len(chosen) < n:
        first, second = (near, far) if len(chosen) % 2 == 0 else (far, near)
        chosen.append((first or second).pop(0))
    return chosen


def find_mark(name: str) -> Mark:
    """The mark of that name; UsageError where there is none."""
    if name not in _MARK:
        raise UsageError(f'look-alikes: mark "{name}" is unknown, choose one of {", ".join(_MARK)}')
    return _MARK[name]
