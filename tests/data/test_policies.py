"""Automatic policies: operations and their ranges are torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from views import GREY, photo, rngs

from fieldmark.data.augment import policy as policies

# -- policies


@pytest.mark.parametrize("name, theirs", [("trivial", v2.TrivialAugmentWide), ("rand", v2.RandAugment)])
@pytest.mark.parametrize("side", [224, 331])
def test_ranges_are_torchvisions(name, theirs, side):
    ours, space = policies.SPACES[name], theirs._AUGMENTATION_SPACE
    assert list(ours) == list(space)
    for operation, (values, signed) in space.items():
        expected, span = values(policies.BINS, side, side), ours[operation]
        if expected is None:
            assert span is None
        else:
            assert span is not None and span[1] == signed
            np.testing.assert_allclose(span[0](side), expected.numpy(), rtol=1e-6)


def test_rand_has_torchvisions_number_and_magnitude():
    theirs = v2.RandAugment()
    assert (theirs.num_ops, theirs.magnitude) == policies.RAND
    assert theirs.num_magnitude_bins == v2.TrivialAugmentWide().num_magnitude_bins == policies.BINS


@pytest.mark.parametrize("operation", policies.SPACES["trivial"])
def test_operations_are_torchvisions(operation):
    """Every step of the magnitude, either sign: the same picture, bit for bit."""
    reference = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=list(GREY))
    image, span = photo(48, 48), policies.SPACES["trivial"][operation]
    image = image.point(lambda value: 40 + value // 2)  # not of full contrast already
    magnitudes = [0.0] if span is None else span[0](48)[[0, 7, 20, 30]].tolist()
    changed = False
    for magnitude in [*magnitudes, *([-m for m in magnitudes] if span and span[1] else [])]:
        ours = policies.apply(image, operation, magnitude, GREY)
        theirs = reference._apply_image_or_video_transform(
            image, operation, magnitude, InterpolationMode.BILINEAR, reference._fill
        )
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
        changed |= bool((np.asarray(ours) != np.asarray(image)).any())
    assert changed == (operation != "Identity")


def test_policies_draw_every_operation(monkeypatch):
    """Each alike often, both signs; one of ``trivial``, two of ``rand``."""
    drawn: list[tuple[str, float]] = []

    def note(image: Image.Image, name: str, magnitude: float, fill: object) -> Image.Image:
        drawn.append((name, magnitude))
        return image

    monkeypatch.setattr(policies, "apply", note)
    image = photo(31, 31)
    for rng in rngs(1400):
        policies.policy(image, "trivial", rng)
    counts = {name: sum(d[0] == name for d in drawn) for name in policies.SPACES["trivial"]}
    assert len(drawn) == 1400 and min(counts.values()) > 65 and max(counts.values()) < 140
    turns = [m for name, m in drawn if name == "Rotate"]
    assert min(turns) < -120 and max(turns) > 120
    unsigned = [m for name, m in drawn if name in ("Posterize", "Solarize")]
    assert min(unsigned) >= 0 and max(unsigned) == 8
    drawn.clear()
    for rng in rngs(200):
        policies.policy(image, "rand", rng)
    assert len(drawn) == 400
    assert {round(abs(m), 6) for name, m in drawn if name == "Rotate"} == {9.0}


def test_policy_fills_with_grey():
    shifted = policies.apply(Image.new("RGB", (64, 64)), "TranslateX", 20.0, GREY)
    assert shifted.getpixel((5, 30)) == GREY and shifted.getpixel((40, 30)) == (0, 0, 0)
