"""The methods, one readable file each. A new one is a file here that says ``CARD = Card(…)``; nothing else lists it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fieldmark.runtime.errors import UsageError

if TYPE_CHECKING:
    from fieldmark.methods.base import Method

DEFAULT_METHOD = "isqrt_cov"
#: Kinds of methods, in the order of the tables.
FAMILIES = (
    "pooling",
    "attention",
    "attention-guided augmentation",
    "losses",
    "progressive and destructive",
    "parts and stages",
    "recurrent",
    "hierarchical",
    "transformers",
    "interpretable",
    "from scratch",
)
#: What a method may need: photos themselves, one class a photo, a class tree, boxes, a transformer.
NEEDS = ("pixels", "labels", "tree", "boxes", "transformer")


@dataclass(frozen=True)
class Card:
    """What a method is, for tables and for finding it; read without importing torch.

    cls: the class in this file; family: of `FAMILIES`; idea: in a line; source: papers; equation: the idea as a
    formula; backbone: does it stand on a pretrained one? instant: does a frozen backbone suffice, so that only a head
    must be fitted? needs: what it cannot do without: ``pixels`` (it crops or shuffles photos, so no stage can be
    kept as maps), ``labels`` (one class a photo: no mixup), ``tree`` (coarser ranks of the classes), ``boxes``,
    ``transformer``; uses: what it makes use of where it is given (``boxes``; ``ranks``: photos of which only a
    coarser rank is known); sampler: of its batches (none: as the photos come); paper: a published result; when: to
    use it; name: that of the file.
    """

    cls: str
    family: str
    title: str
    year: int
    idea: str
    source: str
    equation: str = ""
    backbone: bool = True
    instant: bool = False
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    sampler: Literal["paired"] | None = None
    paper: str = ""
    when: str = ""
    name: str = ""

    @property
    def home(self) -> str:
        """``module:class``."""
        return f"{__name__}.{self.name}:{self.cls}"


def _read(path: Path) -> Card | None:
    """The card of a method's file, which is read and not run; None where it has none."""
    text = path.read_text(encoding="utf-8")
    if "\nCARD = Card(" not in text:
        return None
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _is_card(node):
            values = {k.arg: ast.literal_eval(k.value) for k in node.value.keywords if k.arg}
            return Card(**values, name=path.stem)
    return None


def _is_card(node: ast.Assign) -> bool:
    return isinstance(node.targets[0], ast.Name) and node.targets[0].id == "CARD"


@cache
def cards() -> tuple[Card, ...]:
    """All methods, family by family."""
    found = [card for path in sorted(Path(__file__).parent.glob("*.py")) if (card := _read(path))]
    return tuple(sorted(found, key=lambda one: (FAMILIES.index(one.family), one.year, one.name)))


def card(name: str) -> Card:
    """The card of a method. Raises UsageError for an unknown name."""
    for one in cards():
        if one.name == name:
            return one
    raise UsageError(f"no method is called {name!r}; there are: {', '.join(one.name for one in cards())}")


def get(name: str) -> type[Method]:
    """The class of a method over a backbone. Raises UsageError for another name."""
    one = card(name)
    if not one.backbone:
        raise UsageError(f"the method {name!r} has no backbone: it is trained from scratch")
    module, cls = one.home.split(":")
    return getattr(import_module(module), cls)


def frozen(name: str) -> str | None:
    """The method of instant mode that has the same descriptor before anything is learned: itself, ``plain`` for
    those that only add to its training, None where new layers lie before the descriptor."""
    if card(name).instant:
        return name
    from fieldmark.methods.plain import Plain

    cls = get(name)
    same = issubclass(cls, Plain) and cls.describe is Plain.describe and cls.parts is Plain.parts
    return "plain" if same else None
