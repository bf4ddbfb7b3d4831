"""Look-alikes: rendered beetles whose one distinguishing mark is known, so that explanations are checked.

Genus by body shape, species by one small mark, everything else is nuisance; see ``species``, ``render``,
``write``.
"""

from __future__ import annotations

from fieldmark.data.lookalikes.dataset import write
from fieldmark.data.lookalikes.scene import Picture, render
from fieldmark.data.lookalikes.species import Species, held_out, species

__all__ = ["Picture", "Species", "held_out", "render", "species", "write"]
