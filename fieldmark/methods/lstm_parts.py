"""Parts read one after the other: an LSTM over attention-pooled parts that looks back at the whole map."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone, Features

CARD = Card(
    cls="LSTMParts",
    family="recurrent",
    title="LSTM over parts",
    year=2017,
    idea="learned maps pool one token a part; an LSTM reads them one by one and each time looks back at the whole map",
    source="Zhao et al., Diversified Visual Attention Networks, IEEE TMM 2017; Xu et al., Show, Attend and Tell, "
    "ICML 2015",
    equation="h_m = LSTM([F_m; sum_p a_p X_p], h_(m-1)), a = softmax(w . tanh(U X + V h_(m-1))), "
    "F_m = sum_p softmax(A_m)_p X_p; logits = W mean_m h_m",
    when="where several parts decide together; it costs little beside the backbone",
)


class Options(base.Options):
    """parts: M; width: of a token; hidden: of the LSTM's state; look: of the attention's inner layer."""

    parts: int = Field(8, ge=1, le=64, description="part maps, and steps of the LSTM")
    width: int = Field(512, ge=1, le=4096, description="channels that the map is reduced to")
    hidden: int = Field(512, ge=1, le=4096, description="width of the LSTM's state")
    look: int = Field(128, ge=1, le=4096, description="inner width of the attention")


class LSTMParts(base.Method):
    """The descriptor is the mean [B, hidden] of the states, so the logits are the mean of those of all steps.

    The first state comes from the mean of the map (Xu et al.). In training the loss is taken of every step's logits
    and averaged, so that each part must say something; it sees the steps as photos of their own.
    """

    Options = Options

    def build(self, backbone: Backbone) -> None:
        width, hidden, look = self.options.width, self.options.hidden, self.options.look
        self.reduce = nn.Conv2d(backbone.width, width, 1)
        self.part_maps = nn.Conv2d(backbone.width, self.options.parts, 1)
        self.of_map = nn.Linear(width, look)
        self.of_state = nn.Linear(hidden, look, bias=False)
        self.score = nn.Linear(look, 1, bias=False)
        self.start = nn.Linear(width, 2 * hidden)
        self.cell = nn.LSTMCell(2 * width, hidden)

    def parts(self, features: Features) -> list[Tensor]:
        return [self.read(features.last)[0].mean(1)]

    def read(self, last: Tensor) -> tuple[Tensor, Tensor]:
        """last: [B, C, h, w] -> states [B, M, hidden], and where each step looked [B, M, h, w] (sums are 1)."""
        tokens = self.reduce(last).relu().flatten(2).transpose(1, 2)  # [B, P, width]
        own = self.part_maps(last).flatten(2).softmax(2)  # [B, M, P]
        pooled, keys = own @ tokens, self.of_map(tokens)
        h, c = self.start(tokens.mean(1)).tanh().chunk(2, 1)
        states, looks = [], []
        for step in range(self.options.parts):
            share = self.score((keys + self.of_state(h)[:, None]).tanh()).softmax(1)  # [B, P, 1]
            seen = (share * tokens).sum(1)
            h, c = self.cell(torch.cat([pooled[:, step], seen], 1), (h, c))
            states.append(h)
            looks.append((own[:, step] + share[:, :, 0]) / 2)
        return torch.stack(states, 1), torch.stack(looks, 1).unflatten(2, last.shape[2:])

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        states = self.read(self.backbone(batch.x).last)[0]
        many = [self.options.parts] + [1] * (batch.targets.ndim - 1)
        every = self.judge(states.transpose(0, 1).flatten(0, 1), batch.targets.repeat(many), criterion)
        return {**every, "logits": self.head(states.mean(1))}

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Also ``attention`` [B, M, h, w]: where each step looked."""
        return {**super().features(images), "attention": self.read(self.backbone(images).last)[1]}

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """The mean over the steps of where they looked."""
        return self.read(self.backbone(images).last)[1].mean(1)
