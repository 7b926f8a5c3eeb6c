"""Canny's edges, as ControlNet, CtrLoRA and A1111 draw them: on the three channels together, 100 and 200."""

from typing import Annotated

import cv2
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "Canny edges"
SUMMARY = "White edges of one pixel on black."
A1111_NAMES = ("canny",)
A1111_SLIDERS = ("low", "high")
SIZING = "padded"


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """Two thresholds on the gradient (Canny 1986)."""

    low: Annotated[int, Field(ge=1, le=255)] = 100
    """A weaker gradient is no edge."""
    high: Annotated[int, Field(ge=1, le=255)] = 200
    """A stronger gradient is an edge; between the two, where it touches one."""


def annotate(image: Picture, params: Params) -> Picture:
    """Return the edges in white on black, (h w 3)."""
    return to_picture(cv2.Canny(image, params.low, params.high))
