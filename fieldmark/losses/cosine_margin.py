"""Large-margin cosine loss: the own class must win by a margin of cosine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: The paper's values (section 4.2).
MARGIN, SCALE = 0.35, 64.0


def cosine_margin(
    embedding: Tensor, labels: Tensor, weight: Tensor, margin: float = MARGIN, scale: float = SCALE
) -> Tensor:
    """Mean over photos of -log softmax_c(s (cos(x, w_c) - m [c = y]))_y, in nats; 0 for no photos.

    embedding: x [B, E]; labels: y [B] class numbers; weight: w [C, E], a direction a class (Wang et al.,
    "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018, equation 4).
    """
    if not len(labels):
        return embedding.sum() + 0 * weight.sum()  # a gradient of zeros, as other processes may have one
    from pytorch_metric_learning.losses import CosFaceLoss  # a second to import

    loss = CosFaceLoss(len(weight), 0, margin=margin, scale=scale, weight_init_func=lambda empty: None)
    return torch.func.functional_call(loss, {"W": weight.T}, (embedding, labels))


class CosineMargin(nn.Module):
    """`cosine_margin` with its directions, a parameter of its own: the recogniser's head stays what it is."""

    def __init__(self, classes: int, embedding: int, margin: float = MARGIN, scale: float = SCALE):
        super().__init__()
        self.margin, self.scale = margin, scale
        self.weight = nn.Parameter(torch.randn(classes, embedding))

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """embedding [B, E], labels [B] -> scalar."""
        return cosine_margin(embedding, labels, self.weight, self.margin, self.scale)
