"""Augmented views of photos: what may vary (`settings`), one view (`view`), mixed batches (`mix`).

Only the settings are imported here: they need no PyTorch.
"""

from fieldmark.data.augment.settings import Augment

__all__ = ["Augment"]
