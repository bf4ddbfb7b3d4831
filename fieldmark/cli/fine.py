"""The flags of fine-tuning: `fieldmark.train.recipe` and `fieldmark.data.augment` say what each means in full."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def _flag(metavar: str, text: str, default: str) -> Any:
    return typer.Option(metavar=metavar, help=f"{text}  [default: {default}]", rich_help_panel="Fine-tuning")


Flip = Annotated[
    bool | None,
    typer.Option(
        "--flip/--no-flip",
        help="Mirror views; --no-flip where left and right matter.",
        rich_help_panel="Fine-tuning",
    ),
]
Imbalance = Annotated[
    str | None,
    _flag(
        "NAME",
        "Answer to uneven classes: auto, none, logit_adjustment, inverse, effective, balanced, square_root.",
        "auto",
    ),
]
TrainSize = Annotated[
    int | None, _flag("PIXELS", "Side of the views that are learned from.", "0.7 of --size")
]
Cut = Annotated[
    str | None, _flag("NAME", "Learn only behind this module of the backbone; none: all of it.", "planned")
]
Views = Annotated[
    str | None, _flag("HOW", "kept (made once, as maps), new (every epoch) or auto.", "auto: by the time")
]
Phases = Annotated[
    str | None,
    _flag(
        "NAME", "one; two: kept maps first, then new views; auto: two where there is time for both.", "one"
    ),
]
Progressive = Annotated[
    bool | None,
    typer.Option(
        "--progressive/--no-progressive",
        help="Let views grow while it trains: small ones are quick.  [default: no-progressive]",
        rich_help_panel="Fine-tuning",
    ),
]
Compile = Annotated[
    str | None, _flag("NAME", "Compile the steps: auto, no or yes.", "auto: on GPUs, where it pays")
]
Batch = Annotated[int | None, _flag("N", "Photos a step.", "32; on a GPU 64, or found within a budget")]
Lr = Annotated[float | None, _flag("RATE", "Peak rate of the network.", "0.0003")]
HeadLr = Annotated[float | None, _flag("RATE", "Peak rate of the head.", "0.003")]
Optimizer = Annotated[str | None, _flag("NAME", "adamw, adam or sgd.", "adamw")]
Momentum = Annotated[float | None, _flag("SHARE", "Momentum of sgd.", "0.9")]
Clip = Annotated[float | None, _flag("NORM", "Largest norm of a step's gradient; 0: any.", "1")]
WeightDecay = Annotated[float | None, _flag("SHARE", "Decay of the weights.", "0.01")]
LayerDecay = Annotated[
    float | None, _flag("FACTOR", "Each layer down learns at this share of the one above.", "1")
]
Average = Annotated[float | None, _flag("DECAY", "Of the moving average of the weights.", "0.99")]
Patience = Annotated[
    int | None, _flag("N", "End after N looks at the held-out photos without a better one; 0: never.", "0")
]
Amp = Annotated[
    str | None,
    _flag(
        "NAME",
        "auto, no, bf16 or fp16.",
        "auto: bf16 on GPUs (older ones: fp16) and, within a --budget, on CPUs where it is quicker",
    ),
]
OnNan = Annotated[str | None, _flag("WHAT", "A loss that is not a number: fail or skip.", "fail")]
CacheGb = Annotated[float | None, _flag("GB", "Room for maps on the disk while training.", "4")]
Log = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Tell it what happens while it trains: tensorboard or mlflow; repeat it for both.",
        rich_help_panel="Fine-tuning",
    ),
]
CropScale = Annotated[
    float | None, _flag("SHARE", "Smallest share of a photo's area that a view shows.", "0.4")
]
Rotate = Annotated[float | None, _flag("DEGREES", "Turn views by up to so much.", "0")]
Color = Annotated[float | None, _flag("STRENGTH", "Vary brightness, contrast, saturation and hue.", "0.25")]
Blur = Annotated[float | None, _flag("SHARE", "Of the views that are blurred.", "0")]
Erase = Annotated[float | None, _flag("SHARE", "Of the views with a rectangle erased.", "0")]
Policy = Annotated[str | None, _flag("NAME", "trivial (TrivialAugment) or rand (RandAugment).", "none")]
Mixup = Annotated[float | None, _flag("ALPHA", "Blend photos.", "0")]
Cutmix = Annotated[float | None, _flag("ALPHA", "Paste rectangles of other photos.", "0")]
