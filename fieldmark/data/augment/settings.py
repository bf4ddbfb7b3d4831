"""What may vary from view to view of a photo."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Share = Annotated[float, Field(ge=0, le=1)]


class Augment(BaseModel):
    """How views of a photo vary, in the order in which it is done. The default suits fine-tuning.

    scale: share of the photo's area that is cropped, drawn evenly between the two.
    ratio: width to height of the crop, drawn evenly on a log scale; where photos are stretched to a square,
        as a multiple of the photo's own ratio.
    flip: half of the views are mirrored. Off where left and right matter.
    rotate: up to this many degrees either way.
    policy: ``trivial``: one operation of TrivialAugment (Müller and Hutter, ICCV 2021, wide ranges);
        ``rand``: two of RandAugment (Cubuk et al., NeurIPS 2020, magnitude 9 of 30).
    color: strength s. Brightness, contrast and saturation are multiplied by 1 - 0.8 s to 1 + 0.8 s, hue
        is turned by up to 0.1 s of the circle, in any order.
    blur: share of views that are blurred (Gaussian, sigma 0.1 to 2 pixels at 224 px).
    erase: share of views of which a rectangle, 2% to 33% of the area, is made grey (Zhong et al., AAAI 2020).
    mixup: alpha of the Beta distribution by which two photos are blended (Zhang et al., ICLR 2018); 0: off.
    cutmix: alpha, where a rectangle comes from another photo (Yun et al., ICCV 2019); 0: off. With both,
        each batch gets one of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scale: tuple[float, float] = (0.4, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    rotate: float = Field(0.0, ge=0, le=180)
    policy: Literal["trivial", "rand"] | None = None
    color: Share = 0.25
    blur: Share = 0.0
    erase: Share = 0.0
    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)

    @field_validator("scale")
    @classmethod
    def _shares(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("two shares of the area are needed, above 0, at most 1, the smaller first")
        return scale

    @field_validator("ratio")
    @classmethod
    def _ordered(cls, ratio: tuple[float, float]) -> tuple[float, float]:
        if not 0.1 <= ratio[0] <= ratio[1] <= 10:
            raise ValueError("two ratios are needed, from 0.1 to 10, the smaller first")
        return ratio

    @classmethod
    def none(cls) -> Augment:
        """Every view is the whole photo, as `Preprocess` gives it."""
        return cls(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False, color=0.0)

    @property
    def crops(self) -> bool:
        """Is there anything to draw for the crop?"""
        return self.scale != (1.0, 1.0) or self.ratio != (1.0, 1.0)

    @property
    def mixes(self) -> bool:
        """Are photos of a batch mixed?"""
        return self.mixup > 0 or self.cutmix > 0

    def describe(self) -> str:
        """What is on, in a line, as plans and model cards tell it."""
        share = "{:.0%}".format
        parts = [f"crop {share(self.scale[0])} to {share(self.scale[1])}"] if self.crops else []
        parts += ["flip"] if self.flip else []
        parts += [f"rotate {self.rotate:g}°"] if self.rotate else []
        parts += [f"{self.policy} policy"] if self.policy else []
        parts += [
            f"{name} {getattr(self, name):g}" for name in ("color", "blur", "erase") if getattr(self, name)
        ]
        parts += [f"{name} {getattr(self, name):g}" for name in ("mixup", "cutmix") if getattr(self, name)]
        return ", ".join(parts) or "none"
