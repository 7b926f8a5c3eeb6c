"""The lightness alone, as A1111's recolor_luminance gives it: for colouring a picture anew."""

from typing import Annotated

import cv2
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "Recolor, luminance"
SUMMARY = "The lightness (L of Lab), for colouring a picture anew."
A1111_NAMES = ("recolor_luminance",)
A1111_SLIDERS = ("gamma",)
SIZING = "own"


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """The tone curve."""

    gamma: Annotated[float, Field(ge=0.1, le=2)] = 1.0
    """The power of the lightness; below 1 is brighter."""


def annotate(image: Picture, params: Params) -> Picture:
    """Return L ** gamma, (h w 3)."""
    # A1111 parity: red and blue are exchanged before the conversion
    lightness = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2LAB))[:, :, 0].astype(np.float32) / 255
    return to_picture(lightness**params.gamma * 255)
