"""Straight lines, found without a net (von Gioi et al. 2010): for rooms, houses and perspective."""

from typing import Annotated, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "Straight lines"
SUMMARY = "The straight lines of rooms and houses, white on black."

_SMALLEST_SIDE = 8  # the detector looks at 0.8 of the picture's size and fails below a few pixels


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """Which lines, and how they are drawn."""

    shortest: Annotated[float, Field(ge=1, le=1000)] = 20.0
    """A shorter line, in pixels, is left out."""
    thickness: Annotated[int, Field(ge=1, le=16)] = 1
    """How thick the lines are drawn, in pixels."""


def annotate(image: Picture, params: Params) -> Picture:
    """Return the lines in white on black, (h w 3)."""
    canvas = np.zeros(image.shape[:2], np.uint8)
    if min(canvas.shape) < _SMALLEST_SIDE:
        return to_picture(canvas)
    # without lines the detector gives None; with them (n 4) in OpenCV 5 and (n 1 4) in OpenCV 4
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    found = cast("NDArray[np.float32] | None", cv2.createLineSegmentDetector().detect(grey)[0])
    lines = np.asarray(() if found is None else found, np.float32).reshape(-1, 4)
    for x0, y0, x1, y1 in lines[np.hypot(lines[:, 2] - lines[:, 0], lines[:, 3] - lines[:, 1]) >= params.shortest]:
        cv2.line(
            canvas, (round(float(x0)), round(float(y0))), (round(float(x1)), round(float(y1))), 255, params.thickness
        )
    return to_picture(canvas)
