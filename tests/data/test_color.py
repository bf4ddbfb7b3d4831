"""Changes of colour are torchvision's, as one matrix, where nothing meets the end of the scale; hue is YIQ's."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.v2 import functional as F
from views import but, photo, rngs

from fieldmark.data.augment import color, view
from fieldmark.data.augment.view import augment
from fieldmark.runtime.preprocess import Preprocess


def muted(dice: np.random.Generator, side: int = 16) -> Image.Image:
    """A picture that moderate changes of colour keep off both ends of the scale."""
    return Image.fromarray(dice.integers(90, 140, (side, side, 3), np.uint8))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colors_are_torchvisions(name):
    """To a level, by which the mean of a contrast is rounded there."""
    dice = np.random.default_rng(0)
    for factor in (1.0, *dice.uniform(0.7, 1.4, 9)):
        image = muted(dice)
        grey = [float(color.GREY @ color.mean(image)[:3])] if name == "contrast" else []
        ours = color.recolored(image, getattr(color, name)(factor, *grey))
        theirs = getattr(F, f"adjust_{name}")(image, factor)
        assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1, factor


def test_hue_is_turned_in_yiq():
    """Against Python's own YIQ: the luminance stays, and I and Q turn, from red towards yellow."""
    for turn in (-0.1, 0.03, 0.25):
        before, after = (0.6, 0.4, 0.35), color.hue(turn) @ np.array([0.6, 0.4, 0.35, 1])
        (y, i, q), (y2, i2, q2) = colorsys.rgb_to_yiq(*before), colorsys.rgb_to_yiq(*after[:3])
        turned = np.angle(complex(i, q) / complex(i2, q2)) / (2 * np.pi)
        assert (
            abs(y - y2) < 0.01 and abs(turned - turn) < 0.01 and abs(np.hypot(i, q) - np.hypot(i2, q2)) < 0.01
        )
    reddish = (150, 60, 60)
    image = color.recolored(Image.new("RGB", (1, 1), reddish), color.hue(0.05))
    assert 0 < colorsys.rgb_to_hsv(*image.getpixel((0, 0)))[0] < 1 / 6  # towards yellow
    assert np.allclose(color.hue(0.2) @ [0.3, 0.3, 0.3, 1], [0.3, 0.3, 0.3, 1], atol=1e-6)  # grey stays grey


def test_color_changes_come_in_any_order(monkeypatch):
    seen: list[str] = []

    def note(name: str) -> Callable[..., np.ndarray]:
        return lambda *_: seen.append(name) or np.eye(4)

    for name in ("brightness", "contrast", "saturation", "hue"):
        monkeypatch.setattr(color, name, note(name))
    for rng in rngs(60):
        augment(photo(), Preprocess(size=8), rng, but(color=0.5))
    orders = [tuple(seen[at : at + 4]) for at in range(0, len(seen), 4)]
    assert len(orders) == 60 and len(set(orders)) > 15 and {len(set(order)) for order in orders} == {4}


def test_changes_of_color_follow_each_other():
    """All of a view's changes in one matrix are those one after the other; contrast sees what came before it."""
    dice = np.random.default_rng(3)
    for _ in range(20):
        image, seed = muted(dice), int(dice.integers(1000))
        ours = view._colored(image, 0.2, np.random.default_rng(seed))
        same = np.random.default_rng(seed)
        order, factors = same.permutation(4), same.uniform(1 - 0.16, 1 + 0.16, 3)
        turn, theirs = same.uniform(-0.02, 0.02), image
        for step in order:
            name = ("brightness", "contrast", "saturation", "hue")[step]
            if name == "hue":
                theirs = color.recolored(theirs, color.hue(turn))
            else:
                theirs = getattr(F, f"adjust_{name}")(theirs, factors[step])
        assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 3
