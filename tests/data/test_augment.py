"""Views: a function of seed, photo and epoch; boxes where they should be; torchvision's ranges and operations."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from fieldmark.data.augment import Augment, color
from fieldmark.data.augment import policy as policies
from fieldmark.data.augment.geometry import crop_box, view_box
from fieldmark.data.augment.mix import mix
from fieldmark.data.augment.view import augment, view_rng
from fieldmark.runtime.preprocess import Preprocess

#: Everything off; tests switch on what they look at.
NONE = Augment.none()
EVERYTHING = Augment(rotate=20, policy="trivial", color=0.5, blur=0.5, erase=0.5)
GREY = (124, 116, 104)  # what Preprocess pads with: 255 times the default mean


def but(**changes: object) -> Augment:
    return Augment(**{**NONE.model_dump(), **changes})


def photo(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    """Smooth enough that resizing it is no lottery."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


def ramp(width: int = 90, height: int = 60) -> Image.Image:
    """Red says how far right, green how far down, blue is 200."""
    x = np.broadcast_to(np.linspace(0, 255, width)[None], (height, width))
    y = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.rint(np.stack([x, y, np.full_like(x, 200)], 2)).astype(np.uint8))


def rngs(count: int) -> list[np.random.Generator]:
    return [view_rng(0, "photo", epoch) for epoch in range(count)]


# -- settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0, 1)},
        {"scale": (0.9, 0.5)},
        {"scale": (0.5, 1.1)},
        {"ratio": (0, 1)},
        {"ratio": (2, 1)},
        {"rotate": -1},
        {"color": 1.5},
        {"blur": -0.1},
        {"erase": math.nan},
        {"mixup": -1},
        {"cutmix": math.inf},
        {"policy": "auto"},
        {"flipp": True},
    ],
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ValidationError):
        Augment(**wrong)


def test_settings_through_json_and_in_words():
    settings = Augment(policy="rand", mixup=0.2)
    assert Augment.model_validate_json(settings.model_dump_json()) == settings
    assert settings.describe() == "crop 40% to 100%, flip, rand policy, color 0.25, mixup 0.2"
    assert NONE.describe() == "none" and not NONE.mixes and settings.mixes


# -- generator


def test_generator_is_a_function_of_seed_photo_and_epoch():
    first = view_rng(1, "a", 2).random(4)
    assert (view_rng(1, "a", 2).random(4) == first).all()
    others = [view_rng(2, "a", 2), view_rng(1, "b", 2), view_rng(1, "a", 3), view_rng(12, "", 2)]
    assert len({rng.random() for rng in others} | {first[0]}) == 5


def test_generator_stays_what_it_was():
    """A resumed run may be on a newer version: these bits are for good."""
    assert view_rng(0, "0" * 32, 0).integers(0, 1000, 3).tolist() == [539, 170, 114]


def test_the_same_view_on_any_thread():
    """Threads at work at once, each with views of its own, give what one thread gives."""
    image, spec = photo(), Preprocess(size=32)

    def view(epoch: int) -> bytes:
        return augment(image, spec, view_rng(0, "a", epoch), EVERYTHING).tobytes()

    alone = [view(epoch) for epoch in range(24)]
    assert len(set(alone)) == 24
    seen: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda part: seen.update({e: view(e) for e in part}), args=(range(n, 24, 4),))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [seen[epoch] for epoch in range(24)] == alone


def test_torch_and_numpy_global_generators_are_left_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr, index]
    for rng in rngs(5):
        augment(photo(), Preprocess(size=32), rng, EVERYTHING)
    mix(torch.rand(4, 3, 8, 8, generator=torch.Generator()), torch.arange(4), 4, but(mixup=1, cutmix=1), 0, 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index, call-overload]


# -- geometry


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("space", ["rgb", "grey", "hsv", "lab", "ycbcr"])
def test_none_is_exactly_preprocess(resize, space):
    spec = Preprocess(size=24, resize=resize, crop_pct=0.9, color_space=space)
    image = photo()
    np.testing.assert_array_equal(augment(image, spec, rngs(1)[0], NONE), spec.pixels(image))
    smaller = spec.model_copy(update={"size": 16})
    np.testing.assert_array_equal(augment(image, spec, rngs(1)[0], NONE, size=16), smaller.pixels(image))


@pytest.mark.parametrize("stretch", [True, False])
@pytest.mark.parametrize("size", [(90, 60), (40, 200)])
def test_boxes(stretch, size):
    """Inside the photo, with the area and ratio asked for; all places are reached."""
    settings = Augment(scale=(0.1, 0.3), ratio=(0.5, 2.0))
    boxes = np.array([crop_box(size, rng, settings, stretch) for rng in rngs(800)])
    left, top, right, bottom = boxes.T
    width, height = size
    assert (left >= 0).all() and (top >= 0).all() and (right <= width).all() and (bottom <= height).all()
    area = (right - left) * (bottom - top) / (width * height)
    ratio = (right - left) / (bottom - top) / (width / height if stretch else 1)
    assert 0.1 - 1e-9 <= area.min() < 0.105 and 0.295 < area.max() <= 0.3 + 1e-9
    assert 0.5 - 1e-9 <= ratio.min() < 0.52 and ratio.max() <= 2 + 1e-9
    assert left.min() < 0.02 * width and right.max() > 0.98 * width and bottom.max() > 0.98 * height
    if stretch:  # else the ratios that fit are seen more often
        assert abs(area.mean() - 0.2) < 0.01 and abs(np.log(ratio).mean()) < 0.06


def test_a_box_that_never_fits_is_cut():
    box = crop_box((300, 10), rngs(1)[0], Augment(scale=(1, 1), ratio=(1, 1)), stretch=False)
    assert box[3] - box[1] == 10 and 0 <= box[0] < box[2] <= 300
    assert crop_box((1, 1), rngs(1)[0], Augment(scale=(0.01, 0.01)), stretch=True) == (0, 0, 1, 1)


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_a_crop_is_one_resize_of_its_box(resize):
    """Resizing keeps a ramp a ramp: each pixel has the colour of its place in the photo."""
    settings, spec = but(scale=(0.3, 0.5), ratio=(0.8, 1.25)), Preprocess(size=20, resize=resize)
    across, down = (90, 90) if resize == "pad" else (90, 60)
    above = 15 if resize == "pad" else 0  # grey rows over the photo
    compared = 0
    for epoch in range(8):
        view = augment(ramp(), spec, view_rng(0, "", epoch), settings).astype(float)
        left, top, right, bottom = crop_box(
            (across, down), view_rng(0, "", epoch), settings, resize == "stretch"
        )
        x = left + (np.arange(20) + 0.5) * (right - left) / 20
        y = top + (np.arange(20) + 0.5) * (bottom - top) / 20 - above
        # Close to the border the kernel is cut off, and a ramp bends.
        inside = ((y > 8) & (y < 52))[:, None] & ((x > 8) & (x < 82))[None]
        compared += inside.sum()
        expected = np.stack(np.broadcast_arrays((x - 0.5)[None] * 255 / 89, (y - 0.5)[:, None] * 255 / 59), 2)
        assert np.abs(view[:, :, :2] - expected)[inside].max() < 2
        grey = np.broadcast_to(((y < -8) | (y > 68))[:, None], (20, 20))
        assert (view[grey] == GREY).all() and (resize == "pad" or not grey.any())
    assert compared > 400


def test_half_of_the_views_are_mirrored():
    image, spec = photo(), Preprocess(size=24)
    plain = spec.pixels(image)
    mirrored = [
        bool((augment(image, spec, rng, but(flip=True)) == plain[:, ::-1]).all()) for rng in rngs(400)
    ]
    straight = [bool((augment(image, spec, rng, but(flip=True)) == plain).all()) for rng in rngs(400)]
    assert sum(mirrored) + sum(straight) == 400 and 150 < sum(mirrored) < 250


def test_rotation_is_about_the_centre_within_its_bounds():
    """A line from the centre to the right: where it points tells the angle."""
    canvas = np.zeros((101, 101, 3), np.uint8)
    canvas[50, 50:] = 255
    spec = Preprocess(size=101)
    angles = []
    for rng in rngs(60):
        view = augment(Image.fromarray(canvas), spec, rng, but(rotate=30))
        y, x = np.nonzero((view[:, :, 0] > 60) & (np.hypot(*np.mgrid[-50:51, -50:51]) < 45))
        far = np.hypot(x - 50, y - 50) > 20
        angles.append(math.degrees(math.atan2(-(y[far] - 50).mean(), (x[far] - 50).mean())))
        assert tuple(view[0, 0]) in {GREY, (0, 0, 0)}
    assert 20 < max(angles) < 31 and -31 < min(angles) < -20 and abs(np.mean(angles)) < 6


# -- colour, blur, erase


def test_color_stays_within_its_bounds():
    """Of a grey photo only brightness can change: by 1 - 0.8 s to 1 + 0.8 s."""
    image, spec = Image.new("RGB", (8, 8), (100, 100, 100)), Preprocess(size=8)
    views = np.array([augment(image, spec, rng, but(color=0.5))[0, 0] for rng in rngs(300)], float)
    assert np.ptp(views, axis=1).max() == 0
    assert 59 <= views.min() < 65 and 135 < views.max() <= 141 and abs(views.mean() - 100) < 5


def test_color_changes_contrast_saturation_and_hue():
    image, spec = photo(), Preprocess(size=24)
    plain = np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC).convert("HSV")).astype(float)
    spread, colorful, hue = [], [], []
    for rng in rngs(60):
        view = augment(image, spec, rng, but(color=1.0))
        hsv = np.asarray(Image.fromarray(view).convert("HSV")).astype(float)
        spread.append(view.std() / plain.std())
        colorful.append(hsv[:, :, 1].mean() / plain[:, :, 1].mean())
        turn = (hsv[:, :, 0] - plain[:, :, 0] + 128) % 256 - 128
        hue.append(np.median(turn[plain[:, :, 1] > 60]))
    assert np.ptp(spread) > 0.5 and np.ptp(colorful) > 0.5
    assert 10 < max(hue) < 40 and -40 < min(hue) < -10


@pytest.mark.parametrize("name", ["brightness", "contrast", "hue"])
def test_colors_are_torchvisions(name):
    """Byte for byte, though they let other threads work."""
    dice = np.random.default_rng(0)
    factors = dice.uniform(-0.5, 0.5, 9) if name == "hue" else dice.uniform(0, 2, 9)
    for factor in (0, *factors):
        image = Image.fromarray(dice.integers(0, 256, (17, 31, 3), np.uint8))
        ours, theirs = (getattr(from_, f"adjust_{name}")(image, factor) for from_ in (color, F))
        assert np.array_equal(ours, theirs) and ours.mode == "RGB", factor


def test_color_changes_come_in_any_order(monkeypatch):
    seen: list[str] = []

    def note(name: str) -> Callable[[Image.Image, float], Image.Image]:
        def change(image: Image.Image, factor: float) -> Image.Image:
            seen.append(name)
            return image

        return change

    for name in ("brightness", "contrast", "saturation", "hue"):
        monkeypatch.setattr(F if name == "saturation" else color, f"adjust_{name}", note(name))
    for rng in rngs(60):
        augment(photo(), Preprocess(size=8), rng, but(color=0.5))
    orders = [tuple(seen[at : at + 4]) for at in range(0, len(seen), 4)]
    assert len(orders) == 60 and len(set(orders)) > 15 and {len(set(order)) for order in orders} == {4}


def test_blur_takes_detail_from_its_share_of_views():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8))
    spec = Preprocess(size=224)
    left = np.array([augment(noise, spec, rng, but(blur=0.5)).std() for rng in rngs(40)])
    sharp = np.isclose(left, np.asarray(noise).std())
    assert 10 <= sharp.sum() <= 30 and left[~sharp].min() < 30


def test_erase_makes_a_rectangle_grey():
    spec = Preprocess(size=40, mean=(0.2, 0.4, 0.6))
    plain = spec.pixels(photo())
    shares = []
    for rng in rngs(300):
        view = augment(photo(), spec, rng, but(erase=0.5))
        y, x = np.nonzero((view != plain).any(2))
        if not len(y):
            continue
        area = np.ptp(y) + 1, np.ptp(x) + 1
        block = view[y.min() : y.max() + 1, x.min() : x.max() + 1]
        assert (block == (51, 102, 153)).all()
        assert abs(spec.normalise(block)).max() < 1e-6
        shares.append(area[0] * area[1] / 1600)
    assert 120 < len(shares) < 180
    assert 0.01 < min(shares) < 0.05 and 0.28 < max(shares) < 0.36


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


# -- mixing


def batch(count: int = 6, side: int = 12) -> torch.Tensor:
    """Photo n is n everywhere."""
    return torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 3, side, side).clone()


def test_mixup_by_hand():
    images, labels = batch(), torch.tensor([0, 1, 2, 3, 0, 1])
    mixed, soft = mix(images, labels, 4, but(mixup=0.5), seed=1, step=2)
    onehot = torch.eye(4)[labels]
    share = float(mixed[1, 0, 0, 0])  # photo 1 beside photo 0: share * 1 + (1 - share) * 0
    assert 0 < share < 1
    before = [5, 0, 1, 2, 3, 4]
    torch.testing.assert_close(mixed, share * images + (1 - share) * images[before])
    torch.testing.assert_close(soft, share * onehot + (1 - share) * onehot[before])


def test_cutmix_by_hand():
    images, labels = batch(), torch.tensor([0, 1, 2, 3, 0, 1])
    before = [5, 0, 1, 2, 3, 4]
    onehot = torch.eye(4)[labels]
    areas = []
    for step in range(20):
        mixed, soft = mix(images, labels, 4, but(cutmix=1.0), seed=0, step=step)
        cut = mixed[1, 0] == 0
        areas.append(float(cut.float().mean()))
        y, x = torch.nonzero(cut, as_tuple=True)
        if len(y):
            assert bool(cut[y.min() : y.max() + 1, x.min() : x.max() + 1].all())  # a rectangle
        torch.testing.assert_close(mixed, torch.where(cut, images[before], images))
        torch.testing.assert_close(soft, (1 - areas[-1]) * onehot + areas[-1] * onehot[before])
    assert min(areas) < 0.1 and max(areas) > 0.4


def test_mix_is_a_function_of_seed_and_step():
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    both = but(mixup=0.4, cutmix=1.0)

    def share(seed: int, step: int) -> float:
        return float(mix(images, labels, 4, both, seed, step)[1][0, 0])

    assert share(0, 7) == share(0, 7)
    assert len({share(seed, step) for seed in range(3) for step in range(5)}) > 12
    kinds = set()
    for step in range(12):  # of both, each batch gets one
        mixed, _ = mix(images, labels, 4, both, 0, step)
        kinds.add(bool((mixed == images).any()))
    assert kinds == {True, False}


def test_mix_off_soft_targets_and_memory_format():
    images = torch.rand(4, 3, 8, 8).to(memory_format=torch.channels_last)
    same, soft = mix(images, torch.tensor([1, 0, 1, 2]), 3, NONE, 0, 0)
    assert same is images and soft.tolist() == torch.eye(3)[[1, 0, 1, 2]].tolist()
    given = torch.full((4, 3), 1 / 3)
    for settings in (but(mixup=1.0), but(cutmix=1.0)):
        mixed, soft = mix(images, given, 3, settings, 0, 0)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(soft, given)
        torch.testing.assert_close(given, torch.full((4, 3), 1 / 3))
    with pytest.raises(ValueError, match=r"\[4\] nor \[4, 3\]"):
        mix(images, torch.zeros(4, 2), 3, NONE, 0, 0)


def test_rotate_uses_the_kind_of_interpolation_of_the_photo():
    view = augment(photo(24, 24), Preprocess(size=24, interpolation="nearest"), rngs(1)[0], but(rotate=30))
    angle = rngs(1)[0].uniform(-30, 30)
    expected = F.rotate(photo(24, 24), angle, InterpolationMode.NEAREST, fill=list(GREY))
    np.testing.assert_array_equal(view, np.asarray(expected))


# -- boxes


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize(
    "settings",
    [Augment.none(), Augment(flip=True), Augment(rotate=20, scale=(0.5, 1.0))],
    ids=["none", "crop", "turn"],
)
def test_a_box_goes_where_its_pixels_go(resize, settings):
    """A white rectangle in a black photo: in the view its pixels fill the box that is told."""
    preprocess = Preprocess(size=96, resize=resize, mean=(0, 0, 0), interpolation="bilinear")
    settings = settings.model_copy(update={"color": 0.0})
    photo = np.zeros((150, 240, 3), np.uint8)
    photo[40:90, 60:160] = 255
    box = np.array([60 / 240, 40 / 150, 160 / 240, 90 / 150], np.float32)
    seen = 0
    for epoch in range(12):
        view = augment(Image.fromarray(photo), preprocess, view_rng(0, "x", epoch), settings)
        told = view_box((240, 150), preprocess, view_rng(0, "x", epoch), settings, box)
        rows, columns = np.nonzero(view[:, :, 0] > 60)
        if not len(rows):
            assert np.isnan(told).all() or (told[2:] - told[:2]).min() < 0.02
            continue
        seen += 1
        edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 96
        np.testing.assert_allclose(told, edges, atol=0.03)
    assert seen >= 6


def test_boxes_that_nobody_knows():
    preprocess, unknown = Preprocess(size=32), np.full(4, np.nan, np.float32)
    assert np.isnan(view_box((9, 9), preprocess, view_rng(0, "x", 0), Augment(), unknown)).all()
    whole = np.array([0, 0, 1, 1], np.float32)
    assert np.isnan(view_box((9, 9), preprocess, view_rng(0, "x", 0), Augment(policy="rand"), whole)).all()
