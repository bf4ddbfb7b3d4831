"""Where a network may be cut, and where it is: what lies before the cut stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fieldmark.nn.chain import Call
from fieldmark.train.network import Network
from fieldmark.train.recipe import Recipe

#: Where networks are cut, as shares of the multiplications that lie before the cut: for maps that are kept, and
#: for training on new views.
KEPT, FRESH = 0.65, 0.35
#: Methods that read early maps can only be cut before those. Where that is less than this share of what could stay as
#: it is, more stays as it is and is computed in every step.
NEARLY = 0.7
#: For new layers alone, maps are worth keeping where this share of the multiplications lies before the cut.
HEADS_WORTH = 0.2


class Cuts:
    """Chooses where a network is cut. On a GPU all of it learns."""

    def __init__(self, recipe: Recipe, gpu: bool):
        self.recipe, self.gpu = recipe, gpu
        self._places: tuple[Network, list[Place]] | None = None

    def last(self, network: Network, most: float, apart: bool = False) -> str:
        """The last place in the network with at most this share of its multiplications before it.

        apart: one where it may be cut; else such a one is taken if it leaves not much less as it is than the last.
        """
        if self.recipe.cut is not None:
            return "" if self.recipe.cut == "none" else self.recipe.cut
        if self.gpu:
            return ""
        good = [place for place in self._all(network) if place.share <= most]
        cuts = [place for place in good if place.apart]
        if cuts and (apart or cuts[-1].share >= NEARLY * good[-1].share):
            return cuts[-1].name
        return good[-1].name if good and not apart else ""

    def kept(self, network: Network) -> str:
        """Where maps are kept; "": nowhere."""
        no = self.gpu or self.recipe.cut is not None or self.recipe.views == "new"
        return "" if no else self.last(network, KEPT, apart=True)

    def deepest(self, network: Network) -> str:
        """Behind as much as may be cut off, where maps of it are worth keeping; "": nowhere."""
        cuts = [] if self.gpu else [place for place in self._all(network) if place.apart]
        return cuts[-1].name if cuts and cuts[-1].share >= HEADS_WORTH else ""

    def _all(self, network: Network) -> list[Place]:
        if self._places is None or self._places[0] is not network:
            self._places = network, places(network)
        return self._places[1]


class Place(NamedTuple):
    """Behind the module ``name``, with this share of the multiplications before it. apart: may the network be cut
    there? Elsewhere what lies before can only stay as it is."""

    name: str
    share: float
    apart: bool = True


def places(network: Network) -> list[Place]:
    """All places, from the photo on."""
    parts = shares(network.links, torch.zeros(1, 3, network.size, network.size))
    return [
        Place(link.name, share, network.apart(link.name))
        for link, share in zip(network.links, parts, strict=True)
    ]


def shares(links: Sequence[Call], images: Tensor) -> list[float]:
    """Share of a network's multiplications that are done once each link of its chain is through."""
    counts, tensor = [], images
    with torch.no_grad():
        for link in links:
            with FlopCounterMode(display=False) as counter:
                tensor = link.module(tensor)
            counts.append(counter.get_total_flops())
    total = max(1, sum(counts))
    return [sum(counts[: number + 1]) / total for number in range(len(counts))]


def entries(network: Network, cut: str, size: int) -> int:
    """Numbers in the maps of one view of ``size`` pixels, behind this cut."""
    tensor = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        for link in network.links:
            tensor = link.module(tensor)
            if link.name == cut:
                break
    return tensor.numel()
