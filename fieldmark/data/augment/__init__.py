"""Augmented views of photos: what may vary (`Augment`), one view (`augment`), mixed batches (`mix`)."""

from fieldmark.data.augment.mix import mix
from fieldmark.data.augment.settings import Augment
from fieldmark.data.augment.view import augment, view_rng

__all__ = ["Augment", "augment", "mix", "view_rng"]
