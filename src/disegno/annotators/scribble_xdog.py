"""A1111's scribble_xdog: coarse strokes from one difference of two Gaussians."""

from typing import Annotated

import cv2
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "Scribble, XDoG"
SUMMARY = "White strokes on black from a difference of Gaussians: quick, and at its best on drawings."
A1111_NAMES = ("scribble_xdog",)
A1111_SLIDERS = ("threshold",)
SIZING = "padded"


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """How dark a line must be."""

    threshold: Annotated[float, Field(ge=1, le=64)] = 32.0
    """How much darker than its surroundings a stroke must be; higher leaves fewer strokes."""


def annotate(image: Picture, params: Params) -> Picture:
    """Return the strokes in white on black, (h w 3)."""
    x = image.astype(np.float32)
    fine, coarse = cv2.GaussianBlur(x, (0, 0), 0.5), cv2.GaussianBlur(x, (0, 0), 5.0)
    paper = np.clip(255 - np.asarray(coarse - fine).min(axis=2), 0, 255).astype(np.uint8)
    # A1111 parity: the double is taken in 8 bits and wraps round, so that the heart of a very dark line is left black
    return to_picture(np.where(np.uint8(2) * (255 - paper) > params.threshold, 255, 0))
