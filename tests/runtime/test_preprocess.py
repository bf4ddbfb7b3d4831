"""One specification gives the same numbers everywhere: golden files, formulas by hand, and what it refuses."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from fieldmark.runtime.image import decode
from fieldmark.runtime.preprocess import Preprocess

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def load_maker() -> Any:
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_maker()


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "preprocess.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(make.render()["wide"])


def far(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, in levels of 255."""
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max())


# -- golden files


def test_golden_photos_are_what_the_script_renders(golden):
    for name, rendered in make.render().items():
        np.testing.assert_array_equal(golden[f"photo.{name}"], rendered)
    assert len(golden) == 2 + 2 * len(make.SPECIFICATIONS) and len(make.SPECIFICATIONS) == 60


@pytest.mark.parametrize("title", make.SPECIFICATIONS)
def test_golden_pixels(golden, title):
    for name in ("wide", "tall"):
        pixels = make.SPECIFICATIONS[title].pixels(Image.fromarray(golden[f"photo.{name}"]))
        assert pixels.dtype == np.uint8 and pixels.shape == (make.SIZE, make.SIZE, 3)
        difference = np.abs(pixels.astype(int) - golden[f"{name}.{title}"])
        if "-hsv-" in title:  # hue goes round
            difference[..., 0] = np.minimum(difference[..., 0], 256 - difference[..., 0])
        assert difference.max() <= 1 and difference.mean() < 0.02


def test_golden_specifications_differ(golden):
    """No two ways give the same pixels, so a mix-up cannot pass."""
    seen = {golden[f"wide.{title}"].tobytes() for title in make.SPECIFICATIONS}
    assert len(seen) == len(make.SPECIFICATIONS)


# -- the resize, by hand


def kernel(name: str, x: np.ndarray) -> np.ndarray:
    """Interpolation kernels (Keys, 1981, with a = -1/2, for bicubic; three lobes for Lanczos)."""
    x = np.abs(x)
    if name == "bilinear":
        return np.maximum(1 - x, 0)
    if name == "bicubic":
        near = 1.5 * x**3 - 2.5 * x**2 + 1
        return np.where(x < 1, near, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0)


def resample(name: str, source: int, start: float, length: float, target: int) -> np.ndarray:
    """Weights [target, source] of an antialiased resize of ``length`` pixels from ``start``."""
    scale = length / target
    centre = start + (np.arange(target) + 0.5) * scale
    if name == "nearest":
        return np.eye(source)[np.floor(centre).astype(int)]
    support = {"bilinear": 1, "bicubic": 2, "lanczos": 3}[name] * max(scale, 1)
    weights = np.zeros((target, source))
    for row, middle in enumerate(centre):
        first = max(int(middle - support + 0.5), 0)
        last = min(int(middle + support + 0.5), source)
        places = np.arange(first, last)
        weights[row, places] = kernel(name, (places + 0.5 - middle) / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


def resized(image: np.ndarray, name: str, box: tuple[float, float, float, float], size: tuple[int, int]):
    """The exact answer, not rounded."""
    (height, width), (left, top, across, down) = image.shape[:2], box
    x = resample(name, width, left, across, size[0])
    y = resample(name, height, top, down, size[1])
    return np.einsum("yh,xw,hwc->yxc", y, x, image.astype(float))


def same_but_for_rounding(ours: np.ndarray, exact: np.ndarray) -> bool:
    """8-bit pictures are rounded twice, after each side."""
    difference = np.abs(ours - exact)
    return bool(difference.max() < 1.5 and difference.mean() < 0.4)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("shape", [(41, 70), (70, 41), (15, 9)])
class TestGeometry:
    @staticmethod
    def image(shape: tuple[int, int]) -> np.ndarray:
        # Away from black and white: what is cut off there depends on which side is resized first.
        return np.random.default_rng(0).integers(70, 186, (*shape, 3), np.uint8)

    def test_stretch(self, interpolation, shape):
        image = self.image(shape)
        ours = Preprocess(size=24, resize="stretch", interpolation=interpolation).pixels(
            Image.fromarray(image)
        )
        assert same_but_for_rounding(
            ours, resized(image, interpolation, (0, 0, shape[1], shape[0]), (24, 24))
        )

    def test_crop(self, interpolation, shape):
        """The shorter side becomes size / crop_pct, then the middle is taken."""
        image = self.image(shape)
        spec = Preprocess(size=24, resize="crop", interpolation=interpolation, crop_pct=0.8)
        ours = spec.pixels(Image.fromarray(image))
        side = 0.8 * min(shape)
        box = ((shape[1] - side) / 2, (shape[0] - side) / 2, side, side)
        assert same_but_for_rounding(ours, resized(image, interpolation, box, (24, 24)))

    def test_pad(self, interpolation, shape):
        """The longer side becomes size; the rest is the mean colour."""
        image = self.image(shape)
        ours = Preprocess(size=24, resize="pad", interpolation=interpolation).pixels(Image.fromarray(image))
        ratio = 24 / max(shape)
        inner = (round(shape[1] * ratio), round(shape[0] * ratio))
        left, top = (24 - inner[0]) // 2, (24 - inner[1]) // 2
        expected = np.empty((24, 24, 3))
        expected[:] = np.rint(255 * np.array([0.485, 0.456, 0.406]))
        expected[top : top + inner[1], left : left + inner[0]] = resized(
            image, interpolation, (0, 0, shape[1], shape[0]), inner
        )
        assert same_but_for_rounding(ours, expected)


def test_torchvision_resizes_alike(photo):
    """A second opinion on the default way: tensors, antialiased."""
    import torch
    from torchvision.transforms import v2

    tensor = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    for name in ("bilinear", "bicubic"):
        theirs = v2.functional.resize(tensor, [32, 32], v2.InterpolationMode(name), antialias=True)
        ours = Preprocess(size=32, interpolation=name).pixels(photo)
        assert far(ours, theirs.permute(1, 2, 0).numpy()) <= 1


def test_very_long_photos_keep_a_pixel():
    for shape in ((1, 400, 3), (400, 1, 3)):
        for resize in ("stretch", "crop", "pad"):
            pixels = Preprocess(size=8, resize=resize).pixels(Image.fromarray(np.full(shape, 200, np.uint8)))
            assert pixels.shape == (8, 8, 3) and (pixels == 200).any()


# -- numbers


@pytest.mark.parametrize(
    "mean, std", [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3, (0.5,) * 3)]
)
def test_normalise_is_the_formula(mean, std):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    ours = Preprocess(size=8, mean=mean, std=std).normalise(pixels)
    expected = np.moveaxis((pixels.astype(np.float64) / 255 - mean) / std, -1, 1)
    assert ours.dtype == np.float32 and ours.shape == (2, 3, 5, 7) and ours.flags.c_contiguous
    np.testing.assert_allclose(ours, expected, atol=2e-6)
    np.testing.assert_array_equal(Preprocess(size=8, mean=mean, std=std).normalise(pixels[1]), ours[1])


def test_call_is_pixels_then_normalise(photo):
    spec = Preprocess(size=20, color_space="hsv")
    tensor = spec(photo)
    assert tensor.shape == (3, 20, 20)
    np.testing.assert_array_equal(tensor, spec.normalise(spec.pixels(photo)))


def test_the_photo_is_left_as_it_was(photo):
    before = np.array(photo)
    for spec in make.SPECIFICATIONS.values():
        spec(photo)
    np.testing.assert_array_equal(np.array(photo), before)


# -- what files go through before


def encoded(photo: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    photo.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("orientation, undo", [(3, "ROTATE_180"), (6, "ROTATE_90"), (8, "ROTATE_270")])
def test_a_turned_photo_gives_the_upright_tensor(photo, resize, orientation, undo):
    """The file holds the photo as a camera on its side does; its tag says how to hold it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = encoded(photo.transpose(Image.Transpose[undo]), "PNG", exif=exif)
    spec = Preprocess(size=24, resize=resize)
    upright = spec(decode(encoded(photo, "PNG")))
    np.testing.assert_array_equal(spec(decode(turned, spec.min_side)), upright)
    assert far(spec(decode(encoded(photo.transpose(Image.Transpose[undo]), "PNG"))), upright) > 0.5


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_a_photo_decoded_smaller_differs_little(resize):
    """JPEG's own reduction, then ours: less than a level of grey on average, of a photo eight times as large."""
    y, x = np.mgrid[0:900, 0:1300]
    dice = np.random.default_rng(0)
    scene = np.stack(
        [127 + 100 * np.sin(x / 90), 127 + 100 * np.cos(y / 60 + x / 200), (x // 40 + y // 40) % 2 * 200], -1
    )
    photo = Image.fromarray((scene + dice.normal(0, 8, scene.shape)).clip(0, 255).astype(np.uint8))
    data = encoded(photo, "JPEG", quality=92)
    spec = Preprocess(size=100, resize=resize)
    whole, reduced = decode(data), decode(data, spec.min_side)
    assert reduced.width < whole.width and min(reduced.size) >= spec.min_side
    difference = np.abs(spec.pixels(whole).astype(float) - spec.pixels(reduced))
    assert difference.mean() < 1 and np.quantile(difference, 0.999) < 12


def test_min_side_leaves_something_to_resize():
    assert Preprocess(size=224).min_side == 448
    assert Preprocess(size=224, resize="crop", crop_pct=0.5).min_side == 896


# -- the specification


def test_json_round_trip():
    for spec in make.SPECIFICATIONS.values():
        again = Preprocess.model_validate_json(spec.model_dump_json())
        assert again == spec and hash(again) == hash(spec)
        assert Preprocess(**spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    "nonsense",
    [
        {"size": 0},
        {"size": -224},
        {"size": 7},
        {"size": 5000},
        {"size": 224.5},
        {"resize": "squash"},
        {"color_space": "cmyk"},
        {"interpolation": "magic"},
        {"exif": "ignore"},
        {"crop_pct": 0},
        {"crop_pct": 1.5},
        {"std": (0.2, 0.0, 0.2)},
        {"std": (0.2, -0.1, 0.2)},
        {"std": (0.2, float("nan"), 0.2)},
        {"std": (0.2, float("inf"), 0.2)},
        {"mean": (0.5, float("nan"), 0.5)},
        {"mean": (0.5, 0.5)},
        {"crop_pct": float("nan")},
        {"colour": "rgb"},
    ],
    ids=str,
)
def test_nonsense_is_refused(nonsense):
    with pytest.raises(ValidationError):
        Preprocess(**nonsense)


def test_it_is_frozen():
    with pytest.raises(ValidationError):
        Preprocess().size = 3  # type: ignore[misc]
