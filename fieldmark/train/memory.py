"""Memory that runs out, of a GPU or of the machine."""

from __future__ import annotations

import torch

#: Where even a single photo is too much.
NOT_ONE = "not enough memory for one photo at a time: give a smaller --size"


def ran_out(error: BaseException) -> bool:
    """Does this error say so?"""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and "memory" in text and "illegal memory access" not in text


def give_back() -> None:
    """What a GPU keeps for later, but nothing uses."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
