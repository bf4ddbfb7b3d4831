"""PIM's selection, with the background hushed and a second path that learns at falling temperature."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import kl_div

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card
from fieldmark.methods.pim import PIM, Looked
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone
from fieldmark.nn.token_graph import BottomUp, of_the_answer, tokens_of

CARD = Card(
    cls="HERBS",
    family="transformers",
    title="HERBS",
    year=2023,
    idea="PIM with two pyramid paths: the second teaches the first at a falling temperature, from broad classes to "
    "fine ones; what is not selected is background",
    source="Chou et al., Fine-grained Visual Classification with High-temperature Refinement and Background "
    "Suppression, 2023",
    equation="CE(combined) + 0.3 sum CE(level) + 5 sum mean (tanh(l_left out) + 1)^2 + 1.375 sum KL at temperature T",
    paper="CUB-200-2011 93.1% (Swin-L of ImageNet-21k, 384 px)",
    when="as PIM, where the background misleads",
)
#: So many temperatures follow each other, each half of the one before.
STEPS = 8


def temperature(first: float, progress: float) -> float:
    """first 0.5^floor(8 p), p the share of the phase that is done: 64, 32, ..., 0.5 (in the paper every 10 of 80
    epochs)."""
    return first * 0.5 ** min(STEPS - 1, int(STEPS * progress))


def refinement(first: Tensor, second: Tensor, t: float) -> Tensor:
    """KL(softmax(second / t) || softmax(first / t)) of tokens' logits [B, N, C], divided by C, mean over the tokens.

    The second teaches the first: it gets no gradient. The authors' program divides by C; the paper does not say.
    """
    teacher = (second.detach().float() / t).log_softmax(2)
    return kl_div((first.float() / t).log_softmax(2), teacher, reduction="none", log_target=True).mean()


class HERBS(PIM):
    """As `PIM`, but tokens are selected from a second, bottom-up path, by their probability of the level's answer.

    Paper: width 1536, 32, 64, 128, 256 tokens from coarse to fine at 384 px, SGD 5e-4, 80 epochs.
    """

    class Options(PIM.Options):
        growth: int = Field(2, ge=1, le=8, description="how many times as many from each next finer level")
        level_weight: float = Field(0.3, ge=0, description="weight of the levels' own answers in the loss")
        refine: float = Field(1.375, ge=0, description="weight of the refinement at high temperature")
        temperature: float = Field(
            64.0, gt=0, description="the temperature to begin with; it is halved 7 times"
        )

    def build(self, backbone: Backbone) -> None:
        super().build(backbone)
        self.upward = BottomUp(self.levels, self.options.width)
        self.first = self.classifiers()

    def refine(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The second path, and the first one's logits while training (the answer does not need them)."""
        known = self.training
        first = [c(tokens_of(m)) for c, m in zip(self.first, maps, strict=True)] if known else []
        return self.upward(maps), first

    def score(self, logits: Tensor) -> Tensor:
        return of_the_answer(logits)

    def losses(self, looked: Looked, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        losses = super().losses(looked, batch, criterion)
        t = temperature(self.options.temperature, batch.progress)
        pairs = zip(looked.first, looked.logits, strict=True)
        refined = torch.stack([refinement(one, two, t) for one, two in pairs]).sum()
        total = losses["loss"] + self.options.refine * refined
        return {**losses, "loss": total, "refinement": refined.detach()}
