"""Views: a function of seed, photo and epoch; boxes where they should be; torchvision's ranges and operations."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from views import GREY, NONE, but, photo, ramp, rngs

from fieldmark.data.augment import Augment
from fieldmark.data.augment.geometry import crop_box, view_boxes
from fieldmark.data.augment.mix import mix
from fieldmark.data.augment.view import augment, view_rng
from fieldmark.runtime.preprocess import Preprocess

EVERYTHING = Augment(rotate=20, policy="trivial", color=0.5, blur=0.5, erase=0.5)


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
def test_boxes_go_where_their_pixels_go(resize, settings):
    """A red and a green rectangle in a black photo: in the view their pixels fill the boxes that are told."""
    preprocess = Preprocess(size=96, resize=resize, mean=(0, 0, 0), interpolation="bilinear")
    settings = settings.model_copy(update={"color": 0.0})
    photo = np.zeros((150, 240, 3), np.uint8)
    photo[40:90, 60:160, 0] = photo[100:140, 150:230, 1] = 255
    sides = np.array([240, 150, 240, 150])
    boxes = np.full((3, 5), np.nan, np.float32)
    boxes[0] = *([60, 40, 160, 90] / sides), 7
    boxes[1] = *([150, 100, 230, 140] / sides), 9
    seen = [0, 0]
    for epoch in range(12):
        view = augment(Image.fromarray(photo), preprocess, view_rng(0, "x", epoch), settings)
        told = view_boxes((240, 150), preprocess, view_rng(0, "x", epoch), settings, boxes)
        assert told.shape == (3, 5) and told.dtype == np.float32 and np.isnan(told[2]).all()
        for number in range(2):
            rows, columns = np.nonzero(view[:, :, number] > 60)
            if not len(rows):
                assert np.isnan(told[number]).all() or (told[number, 2:4] - told[number, :2]).min() < 0.02
                continue
            seen[number] += 1
            edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 96
            if settings.rotate and {0.0, 1.0} & set(told[number, :4].tolist()):
                inwards = (edges - told[number, :4]) * [1, 1, -1, -1]
                assert inwards.min() > -0.03, "a corner is turned out of sight: the box is too large at most"
                continue
            np.testing.assert_allclose(told[number, :4], edges, atol=0.03)
            assert told[number, 4] == (7, 9)[number], "what a box is goes with it"
    assert min(seen) >= 6


def test_boxes_that_nobody_knows():
    whole = np.array([[0, 0, 1, 1, 2]], np.float32)
    for boxes, settings in (
        (np.full((2, 5), np.nan, np.float32), Augment()),
        (whole, Augment(policy="rand")),
    ):
        told = view_boxes((9, 9), Preprocess(size=32), view_rng(0, "x", 0), settings, boxes)
        assert told.shape == boxes.shape and np.isnan(told).all()
    assert whole.tolist() == [[0, 0, 1, 1, 2]], "what was given stays as it is"
