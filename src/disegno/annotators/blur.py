"""A Gaussian blur: the condition for deblurring, and for keeping only large forms and colours."""

from typing import Annotated

import cv2
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "Blur"
SUMMARY = "A Gaussian blur."
A1111_NAMES = ("blur_gaussian",)
A1111_SLIDERS = ("sigma",)


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """The Gaussian's width. CtrLoRA's published blur condition is sigma 4 with a kernel of 11 to 101."""

    sigma: Annotated[float, Field(ge=0.01, le=64)] = 9.0
    """The standard deviation, in pixels."""
    kernel: Annotated[int, Field(ge=0, le=255)] = 0
    """The kernel's side in pixels, an odd number; 0 takes what sigma needs."""

    def __post_init__(self) -> None:
        if self.kernel and self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}: it must be odd, or 0")


def annotate(image: Picture, params: Params) -> Picture:
    """Return the blurred picture, (h w 3)."""
    return to_picture(cv2.GaussianBlur(image, (params.kernel, params.kernel), params.sigma))
