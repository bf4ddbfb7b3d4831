"""fieldmark: telling look-alikes apart.

Everything here is loaded when first used (PEP 562), so that ``import fieldmark`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fieldmark.recognizer import Recognizer
    from fieldmark.runtime.catalog import Catalog
    from fieldmark.runtime.errors import FieldmarkError, UsageError
    from fieldmark.runtime.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["Catalog", "FieldmarkError", "Predictor", "Recognizer", "UsageError", "__version__"]

_HOMES = {
    "Recognizer": "fieldmark.recognizer",
    "Predictor": "fieldmark.runtime.predictor",
    "Catalog": "fieldmark.runtime.catalog",
    "FieldmarkError": "fieldmark.runtime.errors",
    "UsageError": "fieldmark.runtime.errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fieldmark' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
