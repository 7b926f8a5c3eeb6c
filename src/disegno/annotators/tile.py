"""The picture at a lower resolution: the condition for adding detail to an enlarged picture."""

from typing import Annotated

import cv2
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "Tile"
SUMMARY = "The picture with its fine detail removed, for adding new detail."
A1111_NAMES = ("tile_resample",)
A1111_SLIDERS = ("rate",)
SIZING = "own"


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """How much detail goes."""

    rate: Annotated[float, Field(ge=1, le=8)] = 1.0
    """How many times smaller the picture is made before it is enlarged again; below 1.1 it stays as it is."""


def shrink(image: Picture, rate: float) -> Picture:
    """Return the picture `rate` times smaller, sides rounded down, (h/rate w/rate 3)."""
    if rate < 1.1:  # A1111 parity
        return image.copy()
    height, width = image.shape[:2]
    size = max(1, int(width / rate)), max(1, int(height / rate))
    return to_picture(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def annotate(image: Picture, params: Params) -> Picture:
    """Return the shrunk picture at its old size, (h w 3)."""
    small = shrink(image, params.rate)
    return to_picture(cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC))
