"""The held-out photos, as the network answers to them in the middle of its training."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from fieldmark.train.loop.best import Score
from fieldmark.train.loop.feeds import Feed
from fieldmark.train.network import Network


class Judge:
    """Every process answers to its share of them. held: [M] their classes; even: of `Score.of`."""

    def __init__(
        self, network: Network, feed: Feed, accelerator: Accelerator, held: np.ndarray, even: bool = False
    ):
        self.network, self.feed, self.accelerator, self.even = network, feed, accelerator, even
        self.held = torch.from_numpy(held)

    @torch.no_grad()
    def logits(self) -> Tensor:
        """[M, C], on the CPU; the network is in training afterwards, if it was before."""
        module, accelerator = self.network.module, self.accelerator
        training = module.training
        module.eval()
        try:
            out = []
            for images in self.feed.held_out(accelerator.process_index, accelerator.num_processes):
                with accelerator.autocast():
                    out.append(module.logits(images.to(accelerator.device)).float().cpu())
        finally:
            module.train(training)
            self.network.freeze_statistics()
        return torch.cat(gather_object(out))

    def score(self) -> Score:
        return Score.of(self.logits(), self.held, self.even)
