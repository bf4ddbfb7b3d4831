"""Every kind of photo file decodes to what pillow's own tools give, or is refused with a short reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fieldmark.runtime import image as module
from fieldmark.runtime.errors import ImageError
from fieldmark.runtime.image import content_hash, decode, load, read, size


def encode(picture: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A smooth, asymmetric colour picture, 48 x 32."""
    y, x = np.mgrid[0:32, 0:48]
    return Image.fromarray(np.stack([x * 5, y * 7, (x + y) * 3], -1).astype(np.uint8))


def pixels(picture: Image.Image) -> np.ndarray:
    assert picture.mode == "RGB" and type(picture) is Image.Image and picture.info == {}
    return np.asarray(picture).astype(int)


def refused(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data)
    reason = str(caught.value)
    assert "\n" not in reason and len(reason) < 140
    return reason


@pytest.mark.parametrize(
    "kind, options", [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})]
)
def test_lossless_formats_keep_every_pixel(photo, kind, options):
    assert np.array_equal(pixels(decode(encode(photo, kind, **options))), np.asarray(photo))


@pytest.mark.parametrize("kind, options", [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_lossy_formats_equal_pillow(photo, kind, options):
    data = encode(photo, kind, **options)
    assert np.array_equal(pixels(decode(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_once_and_dropped(photo, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker"
    data = encode(photo, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    ours = decode(data)
    assert np.array_equal(pixels(ours), np.asarray(expected.convert("RGB")))
    assert ours.size == ((32, 48) if orientation > 4 else (48, 32))
    assert size(data) == ours.size
    assert not ours.getexif()
    if kind == "PNG":  # an independent truth: undoing the turn by hand
        turned = load(Image.open(io.BytesIO(data)))
        assert np.array_equal(pixels(turned), pixels(ours))


def test_broken_exif_is_ignored(photo):
    data = encode(photo, "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xffjunk")
    assert decode(data).size == photo.size


@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_keeps_both_sides(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.new("RGB", (1600, 900), "teal"), "JPEG", exif=exif)
    for min_side, short in [
        (None, 900),
        (900, 900),
        (451, 900),
        (450, 450),
        (225, 225),
        (112, 113),
        (1, 113),
    ]:
        picture = decode(data, min_side)
        assert min(picture.size) == short
        assert (picture.width > picture.height) == (orientation == 1)
    assert decode(encode(Image.new("RGB", (1600, 900)), "PNG"), 10).size == (1600, 900)


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64 * 4).reshape(4, 64).astype(np.uint16)
    expected = np.rint(ramp / 257).astype(int)
    for kind in ("PNG", "TIFF"):
        got = pixels(decode(encode(Image.fromarray(ramp), kind)))
        assert np.array_equal(got[..., 0], expected) and np.array_equal(got[..., 2], expected)
    assert np.array_equal(pixels(load(ramp))[..., 1], expected)


def test_floating_point_and_32_bit_tiff():
    unit = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for top in (1, 255, 65535):
        got = pixels(decode(encode(Image.fromarray(unit * top), "TIFF")))
        assert abs(got[..., 0] - unit * 255).max() <= 0.5001
    signed = pixels(decode(encode(Image.fromarray(unit * 4 - 2), "TIFF")))
    assert signed.min() == 0 and signed.max() == 255
    holes = unit.copy()
    holes[0, 0] = np.nan
    assert pixels(decode(encode(Image.fromarray(holes), "TIFF")))[0, 0].tolist() == [0, 0, 0]
    whole = (unit * 200).astype(np.int32)
    assert np.array_equal(pixels(decode(encode(Image.fromarray(whole), "TIFF")))[..., 0], whole)


def test_transparent_parts_become_white(photo):
    clear = photo.convert("RGBA")
    clear.putalpha(Image.fromarray(np.repeat(np.uint8([[0] * 24 + [255] * 24]), 32, axis=0)))
    got = pixels(decode(encode(clear, "PNG")))
    assert (got[:, :24] == 255).all() and np.array_equal(got[:, 24:], np.asarray(photo)[:, 24:])
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert abs(pixels(decode(encode(half, "PNG"))) - 127).max() <= 1
    for mode in ("L", "RGB"):  # a colour key, as PNG has it
        key = 7 if mode == "L" else (7, 7, 7)
        data = encode(Image.new(mode, (4, 4), key), "PNG", transparency=key)
        assert (pixels(decode(data)) == 255).all()
    grey = Image.new("LA", (4, 4), (10, 0))
    assert (pixels(decode(encode(grey, "PNG"))) == 255).all()


def test_grey_palette_cmyk_and_bilevel(photo):
    grey = photo.convert("L")
    assert np.array_equal(pixels(decode(encode(grey, "PNG")))[..., 1], np.asarray(grey))
    palette = photo.quantize(16)
    assert np.array_equal(pixels(decode(encode(palette, "PNG"))), np.asarray(palette.convert("RGB")))
    inked = pixels(decode(encode(photo.convert("CMYK"), "JPEG", quality=98)))
    assert abs(inked - np.asarray(photo)).mean() < 6
    bilevel = photo.convert("1")
    assert np.array_equal(pixels(decode(encode(bilevel, "TIFF"))), np.asarray(bilevel.convert("RGB")))


def test_animations_give_their_first_frame(photo):
    frames = {"save_all": True, "append_images": [Image.new("RGB", photo.size, "red")]}
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        got = pixels(decode(encode(photo, kind, **frames)))
        assert abs(got - np.asarray(photo)).mean() < 12, kind


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )


@pytest.mark.parametrize("width, height", [(12000, 9000), (10000, 5001), (60000, 60000)])
def test_declared_size_is_checked_before_decoding(recwarn, width, height):
    reason = refused(png_header(width, height))
    assert reason == f"larger than 50 megapixels ({width} x {height} declared)"
    assert not recwarn.list


def test_declared_size_of_other_formats(recwarn):
    small = encode(Image.new("RGB", (8, 8)), "JPEG")
    frame = small.index(b"\xff\xc0")
    assert "larger than 50 megapixels (30000 x 30000" in refused(
        small[: frame + 5] + struct.pack(">HH", 30000, 30000) + small[frame + 9 :]
    )
    webp = bytearray(encode(Image.new("RGBA", (8, 8), (1, 2, 3, 4)), "WEBP", lossless=False))
    assert webp[12:16] == b"VP8X"
    webp[24:30] = (16000).to_bytes(3, "little") * 2
    assert "larger than 50 megapixels" in refused(bytes(webp))
    gif = bytearray(encode(Image.new("P", (8, 8)), "GIF"))
    gif[6:10] = struct.pack("<HH", 60000, 60000)
    assert "60000 x 60000" in refused(bytes(gif))
    bmp = bytearray(encode(Image.new("RGB", (8, 8)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 20000, 20000)
    assert "20000 x 20000" in refused(bytes(bmp))
    assert decode(encode(Image.new("1", (8000, 6250)), "PNG")).size == (8000, 6250)  # exactly 50 MP


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_truncated_files_are_refused(kind):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind)
    for share in (0.5, 0.9):
        assert refused(data[: int(len(data) * share)]) == "truncated file"
    for length in range(1, 60, 3):
        refused(data[:length])


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "file is empty"),
        (b"hello, this is a note\n", "not a photo: its content is text, not an image"),
        ("照片说明".encode() * 100, "not a photo: its content is text, not an image"),
        (b"\n<!DOCTYPE html><p>404", "not a photo: its content is a web page"),
        (b"%PDF-1.7\n...", "not a photo: its content is a PDF document"),
        (b"PK\x03\x04rest", "not a photo: its content is a zip archive"),
        (bytes(1000), "not a photo: its content is nothing but zeros"),
        (b"\0\0\0\x20ftypisom....", "not a photo: its content is a video"),
        (b"\x93\x12\xfe\x01" * 50, "not a photo: its content is of an unknown kind"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a photo: its content is text, not an image"),
    ],
)
def test_what_is_not_a_photo_is_named(data, words):
    assert refused(data) == words


def test_format_outside_the_list_is_refused(photo):
    for kind in ("PPM", "TGA", "ICO"):
        assert "not a photo" in refused(encode(photo, kind))


def test_random_damage_never_raises_anything_else(photo):
    chance = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"):
        good = np.frombuffer(encode(photo, kind), np.uint8)
        for _ in range(60):
            bad = good.copy()
            bad[chance.integers(0, len(bad), 6)] = chance.integers(0, 256, 6)
            try:
                assert decode(bad.tobytes()).mode == "RGB"
            except ImageError as error:
                assert str(error)


def test_heic(photo, monkeypatch):
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    monkeypatch.setitem(__import__("sys").modules, "pi_heif", None)
    assert refused(data) == "HEIC photo: reading it needs the extra fieldmark[heic]"
    monkeypatch.undo()
    pytest.importorskip("pi_heif")
    assert "damaged" in refused(data) or "truncated" in refused(data)


def test_read_says_why(tmp_path: Path):
    def reason(path: Path) -> str:
        with pytest.raises(ImageError) as caught:
            read(path)
        return str(caught.value)

    assert reason(tmp_path / "a.jpg") == "no such file"
    assert reason(tmp_path) == "is a folder, not a photo"
    (tmp_path / "empty.jpg").touch()
    assert reason(tmp_path / "empty.jpg") == "file is empty"
    assert reason(tmp_path / ("x" * 300 + ".jpg")).startswith(("cannot be read", "no such file"))
    for name, target in [("gone.jpg", "nowhere.jpg"), ("loop.jpg", "loop.jpg")]:
        try:
            (tmp_path / name).symlink_to(target)
        except OSError:
            pytest.skip("no symbolic links here")
        assert reason(tmp_path / name) == "broken link"


def test_load_takes_every_kind_of_source(photo, tmp_path):
    path = tmp_path / "a b ü.png"
    photo.save(path)
    expected = np.asarray(photo)
    array = expected.copy()
    for source in (path, str(path), path.read_bytes(), photo, array, array / 255.0):
        assert np.array_equal(pixels(load(source)), expected)
    assert load(array[:, :, 0]).size == load(array[:, :, :1]).size == photo.size
    for wrong in (np.zeros((4, 4, 7)), np.zeros((0, 4)), np.full((4, 4), 300), array * 1.0, 3):
        with pytest.raises(ImageError):
            load(wrong)
    monochrome = load(np.eye(4, dtype=bool))
    assert pixels(monochrome).max() == 255


def test_load_leaves_the_picture_it_was_given_alone(photo):
    given = photo.copy()
    given.info["comment"] = "mine"
    load(given)
    assert given.info == {"comment": "mine"}


def test_content_hash_is_blake2b_128():
    assert content_hash(b"") == "cae66941d9efbd404e4d88758ea67670"
    assert content_hash(b"a") != content_hash(b"b")


def test_extensions_are_lower_case():
    assert all(ending == ending.lower() and ending.startswith(".") for ending in module.EXTENSIONS)
