"""Safe decoding: any photo file becomes an upright 8-bit RGB picture, or one short reason why not.

The format is decided by the file's content, never by its name, from an allow-list. The declared size is
checked before a pixel is decoded. EXIF orientation is applied, then all metadata is dropped.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from fieldmark.runtime.errors import ImageError

#: Photos that declare more pixels than this are refused before decoding.
MAX_PIXELS = 50_000_000
#: Files longer than this are refused before reading (bytes).
MAX_BYTES = 1 << 30
#: File endings that a folder listing takes for photos (lower case).
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".heic", ".heif"})

# What a file starts with, and the pillow reader for it. The readers are called by themselves and not through
# Image.open, whose own size limit is a process-wide warning.
_READERS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"GIF8", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", TiffImagePlugin.TiffImageFile),
    (b"II+\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0+", TiffImagePlugin.TiffImageFile),
)
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
# Contents that are often found under a photo's name: named, so that the reason helps.
_STRANGERS = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000, which is not supported"),
    (b"\xff\x0a", "JPEG XL, which is not supported"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<svg", "an SVG drawing"),
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
# Metadata is dropped, so what is wrong inside it is nobody's concern.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


def content_hash(data: bytes) -> str:
    """The name of a photo's bytes: BLAKE2b with 128 bits, 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read(path: str | Path) -> bytes:
    """The bytes of a photo file. Raises ImageError with a short reason (without the path)."""
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError("is a folder, not a photo")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("is not an ordinary file")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"larger than {MAX_BYTES >> 30} GiB on disk")
        data = path.read_bytes()
    except PermissionError:
        raise ImageError("cannot be read (permission denied)") from None
    except (OSError, ValueError) as error:
        if os.path.islink(path):  # noqa: PTH114 (which raises nothing, as where a name is too long)
            raise ImageError("broken link") from None
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise ImageError("no such file") from None
        raise ImageError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not data:
        raise ImageError("file is empty")
    return data


def decode(data: bytes, min_side: int | None = None) -> Image.Image:
    """A photo file's bytes as an RGB picture: upright, without metadata, transparent parts on white.

    ``min_side``: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides keep at least
    this many pixels (much quicker for large photos). Other formats come at full size. Animations give their
    first frame; 16-bit and floating-point pictures are scaled to 8 bits.
    Raises ImageError with a short reason.
    """
    if not data:
        raise ImageError("file is empty")
    try:
        image = _open(data)
        _check_size(image.size)
        if min_side is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
            image.draft(None, (min_side, min_side))  # a square bound, so that a quarter turn cannot break it
        return _rgb(image)
    except ImageError:
        raise
    except Exception as error:  # pillow's readers raise nearly every kind
        raise ImageError(_reason(data, error)) from None


def size(data: bytes) -> tuple[int, int]:
    """Width and height of a photo file's upright picture, from its header. Raises ImageError for what is none."""
    try:
        image = _open(data)
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # of which pillow tells the upright size already
            width, height = (
                int(image.tag_v2[tag]) for tag in (TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH)
            )
        return (height, width) if _orientation(image) > 4 else (width, height)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(_reason(data, error)) from None


def load(source: str | Path | bytes | Image.Image | np.ndarray, min_side: int | None = None) -> Image.Image:
    """Any one photo as an RGB picture (see decode): a path, a file's bytes, a pillow image or an array.

    Arrays are [H,W], [H,W,1], [H,W,3] or [H,W,4]; integers are 0..255 (uint16: 0..65535), booleans and
    floating-point numbers 0..1. Raises ImageError with a short reason.
    """
    if isinstance(source, (str, Path)):
        return decode(read(source), min_side)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode(bytes(source), min_side)
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if not isinstance(source, Image.Image):
        raise ImageError(f"not a photo: {type(source).__name__} is not a path, bytes, a picture or an array")
    _check_size(source.size)
    try:
        return _rgb(source)
    except Exception as error:
        raise ImageError(_reason(b"", error)) from None


def _open(data: bytes) -> Image.Image:
    """The header read, no pixel decoded."""
    for start, reader in _READERS:
        if data.startswith(start):
            return reader(BytesIO(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile(BytesIO(data))
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        try:
            from pi_heif import HeifImageFile
        except ImportError:
            raise ImageError("HEIC photo: reading it needs the extra fieldmark[heic]") from None
        return HeifImageFile(BytesIO(data))
    raise ImageError(f"not a photo: its content is {_describe(data)}")


def _describe(data: bytes) -> str:
    """What a file that is not a photo seems to be."""
    if data[4:8] == b"ftyp":
        return "AVIF, which is not supported" if data[8:12] in (b"avif", b"avis") else "a video"
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, name in _STRANGERS:
        if data.startswith(start) or head.startswith(start):
            return name
    if not any(data[:512]):
        return "nothing but zeros"
    try:
        data[:512].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < min(len(data), 512) - 3:
            return "of an unknown kind"
    return "of an unknown kind" if b"\0" in data[:512] else "text, not an image"


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"no pixels ({width} x {height} declared)")
    if width * height > MAX_PIXELS:
        raise ImageError(f"larger than {MAX_PIXELS // 1_000_000} megapixels ({width} x {height} declared)")


def _reason(data: bytes, error: Exception) -> str:
    """A short phrase for what went wrong inside a reader."""
    if isinstance(error, Image.DecompressionBombError):  # a reader's own check, before ours
        return f"larger than {MAX_PIXELS // 1_000_000} megapixels"
    text = " ".join(str(error).split())
    cut = (
        (data[:3] == b"\xff\xd8\xff" and b"\xff\xd9" not in data[-1024:])
        or (data[:4] == b"\x89PNG" and b"IEND" not in data[-1024:])
        or (data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data))
    )
    ended = any(word in text.lower() for word in ("truncated", "end of file", "insufficient input"))
    if cut or ended or isinstance(error, EOFError):
        return "truncated file"
    return f"damaged file ({text[:80] or type(error).__name__})"


def _rgb(image: Image.Image) -> Image.Image:
    """Decode, turn upright, and reduce any mode to RGB in a picture that carries nothing else."""
    image.load()
    turn = _TURNS.get(_orientation(image))
    if image.mode != "RGB" or "transparency" in image.info:
        image = _to_rgb(image)
    image = image.transpose(turn) if turn is not None else image._new(image.im)  # shares the pixels
    image.info = {}
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8 (1: upright, also where the metadata cannot be read)."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})
        bits = int(np.ravel(tags.get(TiffImagePlugin.BITSPERSAMPLE, 16))[0])
        values = np.asarray(image)
        # Rounded division by 257 for 16 bits, so that 0 stays 0 and 65535 becomes 255; 12 bits likewise.
        top = (1 << bits) - 1
        grey = ((np.minimum(values, top).astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
        white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        return Image.fromarray(255 - grey if white_is_zero else grey).convert("RGB")
    if mode in ("I", "F"):
        return Image.fromarray(_to_uint8(np.asarray(image))).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if mode == "La":
            image = image.convert("LA")
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Numbers of unknown range to 0..255: the smallest usual range that holds them (1 for floating point,
    255, 65535), else from the least to the greatest. Not-a-number becomes 0."""
    floating = np.issubdtype(values.dtype, np.floating)
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    ranges = (1.0, 255.0, 65535.0) if floating else (255.0, 65535.0)
    if low >= 0 and high <= ranges[-1]:
        low, high = 0.0, next(top for top in ranges if high <= top)
    return np.rint((values - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.size == 0:
        raise ImageError(f"not a photo: an array of shape {array.shape} (expected [H,W], [H,W,3] or [H,W,4])")
    _check_size((array.shape[1], array.shape[0]))
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) + 128) // 257
    elif array.dtype == bool or np.issubdtype(array.dtype, np.floating):
        values = np.nan_to_num(array.astype(np.float32))
        if values.min() < -0.5 or values.max() > 1.5:  # a little beyond is what resizing leaves
            raise ImageError(f"not a photo: an array of {array.dtype} outside 0..1")
        array = np.rint(np.clip(values, 0, 1) * 255)
    elif not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() > 255:
        raise ImageError(f"not a photo: an array of {array.dtype} outside 0..255")
    return Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8))
