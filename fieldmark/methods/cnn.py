"""The textbook convolutional network, from scratch: every kind of layer is an option.

Stages of convolutions (with batch norm, activation, pooling) make a map; a dense head, or a recurrent one that
reads the map row by row, makes an embedding; a linear layer makes logits. LeCun et al., "Gradient-Based
Learning Applied to Document Recognition", 1998; Simonyan and Zisserman, "Very Deep Convolutional Networks",
ICLR 2015 (small kernels, several a stage); Visin et al., "ReNet", 2015 (rows read by a recurrent layer).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn

from fieldmark.methods import Card
from fieldmark.methods.learner import Learner
from fieldmark.nn.fusion import area_resize
from fieldmark.nn.pooling import l2_normalise
from fieldmark.runtime.errors import FieldmarkError, UsageError

CARD = Card(
    cls="TextbookCNN",
    family="from scratch",
    title="Textbook CNN",
    year=1998,
    idea="a small convolutional network, trained from scratch; every kind of layer is an option",
    source="LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998",
    backbone=False,
    when="for small pictures of digits, letters or clothes, and for learning how networks work",
)
#: The least side of a photo; the largest side of a map that the head reads without averaging it first.
LEAST, MOST_READ = 8, 8
#: Slope of leaky ReLU for negative values.
SLOPE = 0.01
#: One over the slope at 0 (of tanh a little more), so that neither signal nor gradient fades.
_GAINS = {"sigmoid": 4.0, "tanh": 5 / 3}
_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
_STAGE = re.compile(r"(?:(\d+)\*)?(\d+)(?:@(\d+))?(?:/(\d+))?")


class Stage(BaseModel):
    """Some convolutions in a row. The stride is the first one's; pooling follows the last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: int = Field(ge=1, le=4096)
    kernel: Literal[1, 3, 5, 7] = 3
    stride: Literal[1, 2] = 1
    convolutions: int = Field(1, ge=1, le=8)

    def __str__(self) -> str:
        many = f"{self.convolutions}*" if self.convolutions > 1 else ""
        return f"{many}{self.channels}@{self.kernel}{'/2' if self.stride == 2 else ''}"


class Options(BaseModel):
    """What the network is made of.

    stages: `Stage`s, mappings, or one line such as ``"2*32@3 64@5/2"``: twice 32 channels with kernel 3, then
    64 with kernel 5 and stride 2. pooling: halves the map after each stage (2 x 2). dropout: the share of the
    embedding left out in training. head: ``dense``, or ``recurrent`` (``cell``) over the map's rows. hidden:
    the embedding's width.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[Stage, ...] = Field(
        (Stage(channels=32, convolutions=2), Stage(channels=64, convolutions=2)), min_length=1, max_length=8
    )
    activation: Literal["relu", "leaky_relu", "sigmoid", "tanh"] = "relu"
    pooling: Literal["max", "average", "none"] = "max"
    batch_norm: bool = True
    dropout: float = Field(0.3, ge=0, lt=1)
    head: Literal["dense", "recurrent"] = "dense"
    cell: Literal["lstm", "gru"] = "lstm"
    hidden: int = Field(128, ge=1, le=8192)

    @field_validator("stages", mode="before")
    @classmethod
    def _compact(cls, value: Any) -> Any:
        return parse_stages(value) if isinstance(value, str) else value

    @property
    def compact(self) -> str:
        """The stages in one line, as ``stages`` reads it."""
        return " ".join(str(stage) for stage in self.stages)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Options:
        """Options from plain values. Raises UsageError, in a line, for one that cannot be."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            why = first["msg"].removeprefix("Value error, ")
            raise UsageError(f"cnn: {where} is {first['input']!r}: {why}") from None


def parse_stages(text: str) -> tuple[dict[str, int], ...]:
    """``"2*32@3 64@5/2"`` -> stages as mappings: [N*]CHANNELS[@KERNEL][/STRIDE], spaces or commas between.

    Raises ValueError for anything else.
    """
    stages = []
    for item in text.replace(",", " ").split():
        match = _STAGE.fullmatch(item)
        if not match:
            raise ValueError(
                f"{item!r} is no stage: write N*CHANNELS@KERNEL/STRIDE, such as 2*32@3 or 64@5/2"
            )
        names = ("convolutions", "channels", "kernel", "stride")
        stages.append({name: int(value) for name, value in zip(names, match.groups(), strict=True) if value})
    return tuple(stages)


class Layer(NamedTuple):
    """A row of `summary`: a layer, its output's shape for one photo, its parameters."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


class TextbookCNN(Learner):
    """images [B, 3, S, S] -> logits [B, classes].

    size: S, from 8 up (fixed; grey photos are repeated over the three channels by whoever reads them).
    Weights are drawn from ``generator`` (torch's own without one). ``head`` is the last linear layer:
    ``forward(x) == head(describe(x))``; ``projection`` makes the embedding of what the head reads (a model folder
    brings one; before, it changes nothing). Raises FieldmarkError, in a line, for a size too small for the stages.
    """

    def __init__(
        self, options: Options, classes: int, size: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if classes < 1:
            raise UsageError(f"cnn: classes is {classes}: at least 1 is needed")
        side = map_side(options, size)
        if size < LEAST or side < 1:
            least = next((s for s in range(LEAST, 8192) if map_side(options, s) > 0), 8192)
            raise FieldmarkError(
                f"photos of {size} px are too small for the stages {options.compact!r} "
                f"with pooling {options.pooling}: at least {least} px are needed"
            )
        self.options, self.classes, self.size = options, classes, size
        self.stages = nn.Sequential()
        channels = 3
        for number, stage in enumerate(options.stages, 1):
            self.stages.add_module(f"stage{number}", _stage(channels, stage, options))
            channels = stage.channels
        window = -(-side // MOST_READ)
        self.average = AreaPool(side // window) if window > 1 else nn.Identity()
        self.neck = (_Rows if options.head == "recurrent" else _dense)(channels, side // window, options)
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(options.hidden, classes)
        self.projection: nn.Module = nn.Identity()
        self.initialise(generator)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, suited to the activation.

        Kaiming normal for ReLUs (He et al., "Delving Deep into Rectifiers", ICCV 2015, equation 10), Xavier
        uniform otherwise (Glorot and Bengio, AISTATS 2010, equation 16); orthogonal recurrent weights and a
        forget gate that starts open (Jozefowicz et al., ICML 2015). Biases are zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                if module is self.head:
                    nn.init.xavier_uniform_(module.weight, generator=generator)
                elif self.options.activation in ("relu", "leaky_relu"):
                    nn.init.kaiming_normal_(
                        module.weight, SLOPE, nonlinearity=self.options.activation, generator=generator
                    )
                else:
                    nn.init.xavier_uniform_(module.weight, _GAINS[self.options.activation], generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LSTM | nn.GRU):
                _recurrent(module, generator)

    def map(self, images: Tensor) -> Tensor:
        """images [B, 3, S, S] -> the last stage's map [B, C, H, W]."""
        if images.shape[1:] != (3, self.size, self.size):
            raise FieldmarkError(f"photos {tuple(images.shape)} are not [B, 3, {self.size}, {self.size}]")
        return self.stages(images)

    def describe(self, images: Tensor) -> Tensor:
        """images [B, 3, S, S] -> what the head reads [B, hidden]; in training with dropout."""
        return self.dropout(self.neck(self.average(self.map(images))))

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """``map`` [B, C, H, W], ``descriptor`` [B, hidden] and ``embedding`` [B, E] with rows of unit length."""
        map_ = self.map(images)
        z = self.neck(self.average(map_))
        return {"map": map_, "descriptor": z, "embedding": l2_normalise(self.projection(z))}


class AreaPool(nn.Module):
    """Map [B, C, H, W] -> means of its places [B, C, side, side], whether or not they divide."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, map_: Tensor) -> Tensor:
        return area_resize(map_, self.side, self.side)


class _Rows(nn.Module):
    """Map [B, C, H, W] -> its H rows, top to bottom, through an LSTM or GRU -> last state [B, hidden]."""

    def __init__(self, channels: int, side: int, options: Options):
        super().__init__()
        kind = nn.LSTM if options.cell == "lstm" else nn.GRU
        self.rows = kind(channels * side, options.hidden, batch_first=True)

    def forward(self, map_: Tensor) -> Tensor:
        rows = map_.transpose(1, 2).flatten(2)  # [B, H, C W]
        return self.rows(rows)[0][:, -1]


def _dense(channels: int, side: int, options: Options) -> nn.Sequential:
    """Map [B, C, H, W] -> dense layer and activation [B, hidden]."""
    dense = nn.Linear(channels * side**2, options.hidden)
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), dense=dense, activation=_activation(options)))


def map_side(options: Options, size: int) -> int:
    """Side in pixels of the last stage's map for photos of ``size`` pixels; 0 where nothing is left."""
    for stage in options.stages:
        size = -(-size // stage.stride)
        size = size if options.pooling == "none" else size // 2
    return size


def summary(options: Options, size: int, classes: int) -> list[Layer]:
    """The network's layers in the order in which a photo passes them. Parameters add up to the network's."""
    model = TextbookCNN(options, classes, size).eval()
    rows: list[Layer] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            shape = tuple((output[0] if isinstance(output, tuple) else output).shape[1:])
            rows.append(
                Layer(name, type(module).__name__, shape, sum(p.numel() for p in module.parameters()))
            )

        return hook

    for name, module in model.named_modules():
        if not [*module.children()] and not isinstance(module, nn.Identity):
            module.register_forward_hook(note(name))
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size))
    return rows


def _stage(channels: int, stage: Stage, options: Options) -> nn.Sequential:
    layers = nn.Sequential()
    for number in range(1, stage.convolutions + 1):
        conv = nn.Conv2d(
            channels,
            stage.channels,
            stage.kernel,
            stride=stage.stride if number == 1 else 1,
            padding=stage.kernel // 2,
            bias=not options.batch_norm,
        )
        layers.add_module(f"conv{number}", conv)
        if options.batch_norm:
            layers.add_module(f"norm{number}", nn.BatchNorm2d(stage.channels))
        layers.add_module(f"activation{number}", _activation(options))
        channels = stage.channels
    if options.pooling != "none":
        layers.add_module("pool", nn.MaxPool2d(2) if options.pooling == "max" else nn.AvgPool2d(2))
    return layers


def _activation(options: Options) -> nn.Module:
    return nn.LeakyReLU(SLOPE) if options.activation == "leaky_relu" else _ACTIVATIONS[options.activation]()


def _recurrent(module: nn.LSTM | nn.GRU, generator: torch.Generator | None) -> None:
    gates = {nn.LSTM: 4, nn.GRU: 3}[type(module)]
    for name, weight in module.named_parameters():
        for number, gate in enumerate(weight.data.chunk(gates)):
            if name.startswith("weight_ih"):
                nn.init.xavier_uniform_(gate, generator=generator)
            elif name.startswith("weight_hh"):
                nn.init.orthogonal_(gate, generator=generator)
            else:  # an LSTM's gates: in, forget, cell, out
                opened = gates == 4 and number == 1 and name.startswith("bias_ih")
                nn.init.constant_(gate, 1.0 if opened else 0.0)
