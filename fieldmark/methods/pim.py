"""A plug-in for any pyramid: every position is classified, the most certain ones are selected and combined."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.base import Method
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.token_graph import (
    TokenGraph,
    TopDown,
    most_certain,
    resized,
    select,
    suppression,
    tokens_of,
)

CARD = Card(
    cls="PIM",
    family="transformers",
    title="Plug-in module (PIM)",
    year=2022,
    idea="every position of a feature pyramid is classified; a graph joins the most certain ones, and the others learn "
    "to say nothing",
    source="Chou et al., A Novel Plug-in Module for Fine-Grained Visual Classification, 2022",
    equation="CE(combined) + 0.5 sum_i CE(mean of level i) + 5 sum_i mean (tanh(l_left out) + 1)^2",
    paper="CUB-200-2011 92.8% (Swin-L of ImageNet-21k, 384 px)",
    when="where several marks of different sizes decide, with a transformer and time for many epochs",
)


#: At most one in so many tokens of a level is selected.
MOST = 4


class Looked(NamedTuple):
    """maps: of the levels; logits: of their tokens [B, N_i, C]; picked: numbers of the selected ones [B, k_i];
    combined: [B, D]; first: logits of a path that is taught by this one, where there is one."""

    maps: list[Tensor]
    logits: list[Tensor]
    picked: list[Tensor]
    combined: Tensor
    first: list[Tensor]


class PIM(Method):
    """One part: what the graph makes of the selected tokens of all levels [B, width].

    Paper: four levels, width 1536, 32, 128, 512, 2048 tokens from coarse to fine at 384 px, SGD 5e-4, 50 epochs; a
    token's classifier has a hidden layer there. The defaults are smaller, for machines without a GPU. Never more than
    a quarter of a level's tokens are selected here (the paper: 22%), so that there is a background to
    hush: in training, too, where views are smaller and the same number is up to half of them.
    """

    selects = True

    class Options(base.Options):
        levels: int = Field(3, ge=1, le=8, description="stages of the pyramid, the last ones (paper: 4)")
        width: int = Field(256, ge=8, le=4096, description="channels of its levels (paper: 1536)")
        keep: int = Field(32, ge=1, description="tokens selected from the coarsest level")
        growth: int = Field(4, ge=1, le=8, description="how many times as many from each next finer level")
        level_weight: float = Field(0.5, ge=0, description="weight of the levels' own answers in the loss")
        suppress: float = Field(
            5.0, ge=0, description="weight of the loss that teaches tokens left out to say nothing"
        )

    def build(self, backbone: Backbone) -> None:
        options = self.options
        self.levels = min(options.levels, len(backbone.channels))
        with torch.inference_mode():
            probe = backbone(torch.zeros(1, 3, backbone.size, backbone.size)).maps[-self.levels :]
        self.grids = [tuple(one.shape[2:]) for one in probe]
        self.keep = [
            max(1, min(options.keep * options.growth ** (self.levels - 1 - i), h * w // MOST))
            for i, (h, w) in enumerate(self.grids)
        ]
        self.pyramid = TopDown([one.shape[1] for one in probe], options.width)
        self.classify = self.classifiers()
        self.combine = TokenGraph(sum(self.keep), options.width)

    def classifiers(self) -> nn.ModuleList:
        """Of a token, one for each level."""
        return nn.ModuleList(nn.Linear(self.options.width, self.task.classes) for _ in range(self.levels))

    def refine(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps of the pyramid -> those whose tokens are selected, and logits of a path that is taught by them."""
        return maps, []

    def score(self, logits: Tensor) -> Tensor:
        """By which tokens are selected: [B, N, C] -> [B, N]."""
        return most_certain(logits)

    def look(self, features: Features) -> Looked:
        maps = [
            resized(one, grid) if one.shape[2] * one.shape[3] < 2 * keep else one
            for one, grid, keep in zip(features.maps[-self.levels :], self.grids, self.keep, strict=True)
        ]
        maps, first = self.refine(self.pyramid(maps))
        tokens = [tokens_of(one) for one in maps]
        logits = [classify(one) for classify, one in zip(self.classify, tokens, strict=True)]
        chosen = [select(t, self.score(a), k) for t, a, k in zip(tokens, logits, self.keep, strict=True)]
        combined = self.combine(torch.cat([one for one, _ in chosen], 1))
        return Looked(maps, logits, [index for _, index in chosen], combined, first)

    def parts(self, features: Features) -> list[Tensor]:
        return [self.look(features).combined]

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        return self.losses(self.look(self.backbone(batch.x)), batch, criterion)

    def losses(self, looked: Looked, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """The sum of the card's equation, and its terms."""
        losses = self.judge(looked.combined, batch.targets, criterion)
        levels = [criterion.of_logits(one.mean(1), batch.targets) for one in looked.logits]
        hushed = [suppression(*one) for one in zip(looked.logits, looked.picked, strict=True)]
        level, hush = torch.stack(levels).sum(), torch.stack(hushed).sum()
        total = losses["loss"] + self.options.level_weight * level + self.options.suppress * hush
        return {**losses, "loss": total, "levels": level.detach(), "suppression": hush.detach()}

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """How certain the selected tokens are, mean of the levels at the finest one's resolution."""
        looked = self.look(self.backbone(images))
        seen = []
        for one, logits, picked in zip(looked.maps, looked.logits, looked.picked, strict=True):
            score = self.score(logits)
            kept = torch.zeros_like(score).scatter(1, picked, score.gather(1, picked))
            seen.append(resized(kept.unflatten(1, one.shape[2:])[:, None], looked.maps[0].shape[2:]))
        return torch.cat(seen, 1).mean(1)
