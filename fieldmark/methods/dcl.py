"""DCL: photos taken to pieces must be recognised as well, told from whole ones, and put together again.

Chen, Bai, Zhang, Mei, "Destruction and Construction Learning for Fine-Grained Image Recognition", CVPR 2019.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, l1_loss

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.plain import Plain
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone
from fieldmark.nn.jigsaw import near_order, origins, shuffled

CARD = Card(
    cls="DCL",
    family="progressive and destructive",
    title="Destruction and construction learning",
    year=2019,
    idea="photos with neighbouring patches swapped are learned beside the whole ones, so that detail counts more than "
    "outline; it answers as plain does",
    source="Chen et al., Destruction and Construction Learning, CVPR 2019",
    equation="loss = L(photos and shuffled) + L(photo or shuffled?) + mean |tanh(place predicted) - place of a patch|",
    needs=("pixels",),
    paper="CUB-200-2011 87.8% (ResNet-50, 448 px)",
    when="where small marks decide and not the outline, and answers must be as quick as plain's",
)


class Options(base.Options):
    """Settings of DCL."""

    grid: int = Field(7, ge=2, le=64, description="patches a side that a photo is cut into")
    reach: float = Field(
        2.0, gt=0.5, description="patches stay within twice this many places, in row and column"
    )
    adversary: float = Field(1.0, ge=0, description="weight of telling photos from shuffled ones")
    location: float = Field(
        1.0, ge=0, description="weight of finding where patches are from (the paper: 1, of rigid things 0.01)"
    )


class DCL(Plain):
    """Plain's descriptor and answer. In training two heads more, over the whole backbone's features: one tells photos
    from shuffled ones [2 B, 2], one says of each patch where it is from [2 B, 2, grid, grid]."""

    Options = Options

    def build(self, backbone: Backbone) -> None:
        self.adversary = nn.Linear(backbone.embedding, 2)
        self.location = nn.Conv2d(backbone.width, 2, 1)

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """Criterion of the photos and of the shuffled ones, and the losses of the two heads."""
        photos, device, options = len(batch.targets), batch.x.device, self.options
        order = near_order(photos, options.grid, options.reach, device)
        images = torch.cat([batch.x, shuffled(batch.x, order)])
        features = [self.backbone(resample(images)) for resample in self.resamplers]
        z = torch.cat([part for one in features for part in self.parts(one)], 1)
        losses = self.judge(z, torch.cat([batch.targets, batch.targets]), criterion)
        destroyed = torch.arange(2 * photos, device=device) // photos
        adversary = cross_entropy(self.adversary(features[0].embedding).float(), destroyed)
        own = torch.arange(options.grid**2, device=device).expand_as(order)
        found = adaptive_avg_pool2d(self.location(features[0].last), options.grid).tanh()
        location = l1_loss(found.float(), origins(torch.cat([own, order])))
        total = losses["loss"] + options.adversary * adversary + options.location * location
        return {
            **losses,
            "loss": total,
            "logits": losses["logits"][:photos],
            "adversary": adversary.detach(),
            "location": location.detach(),
        }
