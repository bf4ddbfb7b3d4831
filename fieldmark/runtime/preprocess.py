"""From a photo to the numbers a backbone reads: one frozen specification, executed the same everywhere.

Training, evaluation and the torch-free predictor all call `Preprocess`; it is saved with the model.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_MODES = {"rgb": "RGB", "grey": "L", "hsv": "HSV", "lab": "LAB", "ycbcr": "YCbCr"}

ColorSpace = Literal["rgb", "grey", "hsv", "lab", "ycbcr"]
Resize = Literal["stretch", "crop", "pad"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


class Preprocess(BaseModel):
    """Photo -> tensor.

    size: side of the square the backbone sees, in pixels.
    resize: ``stretch`` both sides to ``size`` (nothing is lost at the borders); ``crop`` the shorter side to
        size / crop_pct, then the centre; ``pad`` the longer side to ``size``, the rest filled with grey.
    color_space: channels handed on; ``grey`` is repeated three times, ``lab`` is CIE L*a*b* as pillow has it
        (8 bits a channel, a and b offset by 128), ``hsv`` and ``ycbcr`` likewise 8 bits.
    mean, std: per channel, after scaling to [0, 1]: x = (v / 255 - mean) / std.
    exif: ``apply`` turns the photo upright first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: int = Field(224, ge=8, le=4096)
    resize: Resize = "stretch"
    crop_pct: float = Field(1.0, gt=0.1, le=1.0)
    interpolation: Interpolation = "bicubic"
    color_space: ColorSpace = "rgb"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    exif: Literal["apply"] = "apply"

    @field_validator("std")
    @classmethod
    def _positive(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError("std must be above 0 in every channel")
        return std

    @property
    def min_side(self) -> int:
        """A photo may be decoded at reduced scale as long as both sides stay at least this long (pixels)."""
        # Twice the size: the reduction that JPEG offers is a plain box filter, ours finishes the job.
        return 2 * round(self.size / self.crop_pct)

    def geometry(self, image: Image.Image) -> Image.Image:
        """The photo [any size] resized and cropped to size x size, still 8-bit."""
        filter_, size = _FILTERS[self.interpolation], self.size
        if self.resize == "stretch":
            return image.resize((size, size), filter_)
        width, height = image.size
        if self.resize == "crop":
            side = min(width, height) * self.crop_pct
            left, top = (width - side) / 2, (height - side) / 2
            return image.resize((size, size), filter_, box=(left, top, left + side, top + side))
        ratio = size / max(width, height)
        inner = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        grey = tuple(round(255 * m) for m in self.mean) if self.color_space == "rgb" else (128, 128, 128)
        canvas = Image.new("RGB", (size, size), grey)
        canvas.paste(image.resize(inner, filter_), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return canvas

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Upright RGB photo -> uint8 [size, size, 3] in the colour space."""
        image = self.geometry(image)
        if self.color_space == "rgb":
            return np.asarray(image)
        if self.color_space == "lab":
            values = np.asarray(image.convert("LAB"))
            # pillow keeps a* and b* as signed bytes: shift them so that neutral grey is 128.
            return values ^ np.array([0, 128, 128], np.uint8)
        values = np.asarray(image.convert(_MODES[self.color_space]))
        return values if values.ndim == 3 else np.repeat(values[:, :, None], 3, axis=2)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [..., H, W, 3] -> float32 [..., 3, H, W]."""
        gain = (1 / (255 * np.asarray(self.std, np.float64))).astype(np.float32)
        shift = (np.asarray(self.mean) / np.asarray(self.std)).astype(np.float32)
        out = np.multiply(np.moveaxis(pixels, -1, -3), gain[:, None, None], dtype=np.float32, order="C")
        out -= shift[:, None, None]
        return out

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Upright RGB photo -> float32 [3, size, size]."""
        return self.normalise(self.pixels(image))
