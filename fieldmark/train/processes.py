"""Several processes that train one model, as torchrun starts them: who am I, and who writes.

Read from the environment, so that asking costs no import of PyTorch.
"""

from __future__ import annotations

import os


def rank() -> int:
    """The number of this process; the one that writes is 0."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def main() -> bool:
    """Is this the process that writes?"""
    return rank() == 0
