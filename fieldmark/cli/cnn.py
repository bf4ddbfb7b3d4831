"""The flags of ``--method cnn``: `fieldmark.methods.cnn.Options` and docs/cnn.md say what each means in full."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

_PANEL = "Textbook network (--method cnn)"


def _flag(metavar: str, text: str, default: str, **more: Any) -> Any:
    return typer.Option(metavar=metavar, help=f"{text}  [default: {default}]", rich_help_panel=_PANEL, **more)


NetRecipe = Annotated[
    str | None, _flag("NAME", "Layers and training of a known set: digits, mnist, fashion-mnist.", "none")
]
Stages = Annotated[
    str | None,
    _flag(
        "TEXT", "Convolutions as N*CHANNELS@KERNEL/STRIDE, such as '2*32@3 64@5/2'.", "by the photos' size"
    ),
]
Activation = Annotated[
    Literal["relu", "leaky_relu", "sigmoid", "tanh"] | None,
    _flag("NAME", "relu, leaky_relu, sigmoid or tanh.", "relu"),
]
Pooling = Annotated[
    Literal["max", "average", "none"] | None,
    _flag("NAME", "After each stage: max, average or none.", "max"),
]
BatchNorm = Annotated[
    bool | None,
    typer.Option("--batch-norm/--no-batch-norm", help="After each convolution.", rich_help_panel=_PANEL),
]
NetHead = Annotated[
    Literal["dense", "recurrent"] | None,
    _flag("NAME", "dense, or recurrent over the rows of the map.", "dense"),
]
Cell = Annotated[Literal["lstm", "gru"] | None, _flag("NAME", "Of the recurrent head: lstm or gru.", "lstm")]
Hidden = Annotated[int | None, _flag("N", "Width of the embedding.", "128", min=1)]
Dropout = Annotated[
    float | None, _flag("SHARE", "Of the embedding, left out in training.", "0.3", min=0, max=0.99)
]
Shift = Annotated[
    float | None,
    _flag("SHARE", "Views are moved by up to this share of the side.", "0.08", min=0, max=0.5),
]
Search = Annotated[
    bool,
    typer.Option(
        "--search",
        help="Choose stages and dropout, where not given, by cross-validation.",
        rich_help_panel=_PANEL,
    ),
]
