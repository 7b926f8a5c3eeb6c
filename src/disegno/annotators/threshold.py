"""Black and white by one threshold."""

from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "Threshold"
SUMMARY = "White where every channel is brighter than a threshold, black elsewhere."
A1111_NAMES = ("threshold",)
A1111_SLIDERS = ("level",)
SIZING = "padded"


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """One threshold."""

    level: Annotated[float, Field(ge=0, le=255)] = 127
    """The darkest channel must be brighter than this."""


def annotate(image: Picture, params: Params) -> Picture:
    """Return the map in black and white, (h w 3)."""
    return to_picture(np.where(image.min(axis=2) > params.level, 255, 0))
