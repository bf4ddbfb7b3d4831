"""CAL: attention must help. The answer under the learned maps is compared with that under maps of pure chance.

Rao, Chen, Lu, Zhou, "Counterfactual Attention Learning for Fine-Grained Visual Categorization and
Re-identification", ICCV 2021; on top of WS-DAN, with its settings of training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card
from fieldmark.methods.task import Batch
from fieldmark.methods.wsdan import WSDAN

CARD = Card(
    cls="CAL",
    family="attention-guided augmentation",
    title="Counterfactual attention learning",
    year=2021,
    idea="WS-DAN, whose attention maps must lead to better answers than random maps do",
    source="Rao et al., Counterfactual Attention Learning, ICCV 2021",
    equation="loss = L(head z(A)) + L(head z(A) - head z(A')) + |f - c|^2, A' drawn evenly from 0 to 2",
    needs=("pixels",),
    paper="CUB-200-2011 90.6% (ResNet-101, 448 px, the mean of 8 looks at a photo)",
    when="as WS-DAN, where its maps look at the background",
)


class CAL(WSDAN):
    """WS-DAN with one loss more: of the effect that the attention has on the logits."""

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """WS-DAN's losses, and the criterion of the difference that the maps make, over the same three looks."""
        z, seen = self.looks(batch.x)
        targets = torch.cat([batch.targets] * 3)
        losses = self.judge(z, targets, criterion)
        chance = torch.cat([self.pooled(x, 2 * torch.rand_like(maps)) for x, maps in seen], 1)
        effect = criterion.of_logits(losses["logits"] - self.head(chance), targets)
        losses = {**losses, "loss": losses["loss"] + effect, "effect": effect.detach()}
        return self.with_center(losses, z, batch)
