"""The value alone, as A1111's recolor_intensity gives it: for colouring a picture anew."""

from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "Recolor, intensity"
SUMMARY = "The brightest channel (V of HSV), for colouring a picture anew."
A1111_NAMES = ("recolor_intensity",)
A1111_SLIDERS = ("gamma",)
SIZING = "own"


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """The tone curve."""

    gamma: Annotated[float, Field(ge=0.1, le=2)] = 1.0
    """The power of the value; below 1 is brighter."""


def annotate(image: Picture, params: Params) -> Picture:
    """Return V ** gamma, (h w 3)."""
    value = image.max(axis=2).astype(np.float32) / 255
    return to_picture(value**params.gamma * 255)
