"""Hard attention: a few glimpses of the photo, each placed by what was seen before; learned by REINFORCE."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import one_hot

from fieldmark.losses.combine import Criterion
from fieldmark.methods import Card, base
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.glimpse import glimpse, peak_place, pyramid, reinforce, spots
from fieldmark.runtime.errors import FieldmarkError

CARD = Card(
    cls="RAM",
    family="recurrent",
    title="Recurrent model of visual attention",
    year=2014,
    idea="a recurrent network looks at the photo through one small window after the other and chooses each place",
    source="Mnih et al., Recurrent Models of Visual Attention, NIPS 2014; Ba et al., ICLR 2015",
    equation="h_t = ReLU(W g_t + U h_(t-1)), l_t ~ N(tanh(f(h_t)), s); loss = mean_t cross-entropy(h_t) + "
    "mean (b_t - R_t)^2 - 0.01 sum_t log pi(l_t) (R_t - b_t), R_t = p(class | h_t) - p(class | h_(t-1))",
    needs=("pixels",),
    when="where the mark is tiny in a large photo, and the places looked at must be shown",
)
#: How much the choice of places weighs in the loss (methods with a learning rate a weight do not feel it).
POLICY = 0.01
#: Cells a side of the map that `RAM.attention` draws its glimpses on.
CELLS = 32


class Options(base.Options):
    """glimpses: T; side, windows: of a glimpse, the first window at full resolution and each next twice as wide."""

    glimpses: int = Field(6, ge=1, le=32, description="how often it looks")
    side: int = Field(48, ge=4, le=512, description="side in pixels of a glimpse's smallest window")
    windows: int = Field(
        3, ge=1, le=5, description="windows of a glimpse, each twice as wide as the one before"
    )
    hidden: int = Field(256, ge=1, le=4096, description="width of the state")
    spread: float = Field(
        0.15, gt=0, le=1, description="standard deviation of places tried, half a photo being 1"
    )
    encoder: Literal["auto", "backbone", "small"] = Field(
        "auto",
        description="what sees a glimpse: the backbone's first stages, or a small network of its own "
        "(auto: the first, where they take windows of this side)",
    )
    reward: Literal["gain", "end"] = Field(
        "gain",
        description="what a choice of place earns: how much surer of the right class the glimpse made the answer, or "
        "how sure it was in the end (the paper)",
    )
    context: bool = Field(False, description="begin from the backbone's pooled features, too (Ba et al.)")


class Look(NamedTuple):
    """T glimpses. states: [B, T, hidden] after each; places: [B, T, 2] as (x, y) from -1 to 1; log_probability: [B, T]
    of having chosen them; expected: [B, T], the reward expected before each."""

    states: Tensor
    places: Tensor
    log_probability: Tensor
    expected: Tensor


class RAM(base.Method):
    """The descriptor is the state [B, hidden] after the last glimpse.

    The first place is a soft arg-max over the backbone's last map, where the paper begins anywhere: few glimpses find
    little by chance. In training places are drawn around the network's
    choice, and the reward R is the probability that is given to the right class: the mean of the paper's 1 (right) or 0
    over answers drawn by their probability, and less noisy. The paper has it after the last glimpse; by default each
    glimpse has an answer that is trained too, and earns what it added to that probability, so that a choice is judged
    by what it showed and not by what all others did. In answering the choice itself is taken, so the same photo
    gives the same glimpses. What chooses places and expects rewards reads states and maps but does not change them.
    Without ``context`` the answer rests on the glimpses alone, and of the backbone only the stages that see them learn.
    """

    Options = Options
    selects = True

    def build(self, backbone: Backbone) -> None:
        if len(self.scales) > 1:
            raise FieldmarkError("ram looks at windows of several sizes by itself: give it one scale")
        o = self.options
        self.stage = _stage(backbone, o.side, o.encoder)
        if self.stage is None:
            seen, self.small = 32 * ((o.side + 7) // 8) ** 2, _small(3 * o.windows)
        else:
            seen = backbone.channels[self.stage] * o.windows
        self.what, self.where = nn.Linear(seen, o.hidden), nn.Linear(2, o.hidden)
        self.new, self.old = nn.Linear(o.hidden, o.hidden), nn.Linear(o.hidden, o.hidden, bias=False)
        if o.context:
            self.begun = nn.Linear(backbone.embedding, o.hidden)
        inner = max(1, o.hidden // 2)
        self.first = nn.Sequential(
            nn.Conv2d(backbone.width, inner, 1), nn.ReLU(), nn.Conv2d(inner, 1, 1, bias=False)
        )
        self.next = nn.Sequential(nn.Linear(o.hidden, inner), nn.ReLU(), nn.Linear(inner, 2), nn.Tanh())
        self.first_expected = nn.Linear(backbone.embedding, 1)
        self.expected = nn.Linear(o.hidden, 1)

    def parts(self, features: Features) -> list[Tensor]:
        """The state before the first glimpse."""
        if self.options.context:
            return [self.begun(features.embedding).relu()]
        return [torch.zeros_like(features.embedding[:, :1]).expand(-1, self.options.hidden)]

    def describe(self, images: Tensor) -> Tensor:
        return self.look(images).states[:, -1]

    def look(self, images: Tensor, draw: bool = False) -> Look:
        """images [B, 3, S, S] -> its glimpses. draw: places by chance, as in training?"""
        features, o = self.backbone(self.resamplers[0](images)), self.options
        photo, levels = (images.shape[2], images.shape[3]), pyramid(images, o.windows)
        (state,) = self.parts(features)
        mean = peak_place(self.first(features.last.detach()).float()).float()
        expected = [self.first_expected(features.embedding.detach())]
        states, places, chances = [], [], []
        for step in range(o.glimpses):
            if step:
                mean = self.next(state.detach()).float()
                expected.append(self.expected(state.detach()))
            drawn = mean.detach()
            if draw:
                drawn = drawn + o.spread * torch.randn_like(drawn)
                chances.append(Normal(mean, o.spread).log_prob(drawn).sum(1))
            place = drawn.clamp(-1, 1)
            g = (self.what(self.see(glimpse(levels, place, o.side, photo))) + self.where(place)).relu()
            state = (self.new(g) + self.old(state)).relu()
            states.append(state)
            places.append(place)
        chance = torch.stack(chances, 1) if draw else torch.zeros_like(torch.cat(expected, 1))
        return Look(torch.stack(states, 1), torch.stack(places, 1), chance, torch.cat(expected, 1))

    def see(self, windows: Tensor) -> Tensor:
        """Windows of a glimpse [B, K, 3, side, side] -> what is in them [B, ...]."""
        if self.stage is None:
            return self.small(windows.flatten(1, 2)).flatten(1)
        seen = _stages(self.backbone, windows.flatten(0, 1), self.stage).mean((2, 3))
        return seen.reshape(-1, self.options.windows * seen.shape[1])

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        look, count = self.look(batch.x, draw=True), len(batch.targets)
        states = look.states if self.options.reward == "gain" else look.states[:, -1:]
        losses = self.judge(
            states.transpose(0, 1).flatten(0, 1), torch.cat([batch.targets] * states.shape[1]), criterion
        )
        chance = losses["logits"].detach().float().softmax(1).unflatten(0, (-1, count))  # [T, B, C]
        shares = batch.targets if batch.targets.ndim == 2 else one_hot(batch.targets, chance.shape[2])
        sure = (chance * shares).sum(2).T
        earned = sure.diff(dim=1, prepend=torch.zeros_like(sure[:, :1]))  # in the end: all of it
        policy, baseline = reinforce(look.log_probability.float(), earned, look.expected.float())
        losses["loss"] = losses["loss"] + POLICY * policy + baseline
        losses["logits"] = losses["logits"][-count:]
        told = {"policy": policy.detach(), "baseline": baseline.detach(), "reward": sure[:, -1].mean()}
        return {**losses, **told}

    def begin(self, phase: int) -> None:
        """Stages that neither see glimpses nor give context stay as they are."""
        if self.options.context:
            return
        learns = [p for p in self.backbone.parameters() if p.requires_grad]
        seen: Any = None
        if self.stage is not None and learns:
            side = self.options.side
            seen = _stages(self.backbone, learns[0].new_zeros(1, 3, side, side), self.stage).sum()
        reached: Any = [None] * len(learns)
        if seen is not None and seen.requires_grad:
            reached = torch.autograd.grad(seen, learns, allow_unused=True)
        for parameter, gradient in zip(learns, reached, strict=True):
            parameter.requires_grad_(gradient is not None)

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """Spots where it looked."""
        return self._spots(images).amax(1)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Also ``attention`` [B, T, h, w]: a spot for each glimpse, in their order."""
        return {**super().features(images), "attention": self._spots(images)}

    def _spots(self, images: Tensor) -> Tensor:
        return spots(self.look(images).places, CELLS, self.options.side / 2 / images.shape[-1])


def _stage(backbone: Backbone, side: int, encoder: str) -> int | None:
    """The stage whose map sees glimpses, the last but one; None for a network of its own."""
    stage = max(0, len(backbone.channels) - 2)
    if encoder == "small":
        return None
    why = "it keeps one resolution"
    if backbone.strides[0] < backbone.strides[-1]:
        try:
            with torch.inference_mode():
                _stages(backbone, torch.zeros(1, 3, side, side), stage)
            return stage
        except Exception as error:
            why = str(error).splitlines()[0]
    if encoder == "auto":
        return None
    raise FieldmarkError(
        f"backbone {backbone.source.architecture} cannot look at glimpses of {side} px ({why}): "
        "set encoder=small, or choose a convolutional network"
    )


def _stages(backbone: Backbone, images: Tensor, stage: int) -> Tensor:
    """images [B, 3, s, s] -> the map of one stage [B, C, h, w]; what comes after it is not computed."""
    maps = backbone.model.forward_intermediates(
        images, indices=[stage], stop_early=True, intermediates_only=True, output_fmt="NCHW"
    )
    return maps[0]


def _small(channels: int) -> nn.Sequential:
    """Windows as channels [B, channels, s, s] -> [B, 32, s / 8, s / 8], rounded up."""
    layers: list[nn.Module] = []
    for width in (32, 64, 32):
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)
