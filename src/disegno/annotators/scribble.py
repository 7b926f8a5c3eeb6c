"""Hand-like strokes: the long outlines of a smoothed picture, drawn with a thick pen."""

from typing import Annotated

import cv2
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "Scribble"
SUMMARY = "A few thick white strokes on black, as drawn by hand."
SIZING = "padded"


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """How many strokes, and how thick. Lengths are in pixels of a picture whose short side is 512."""

    threshold: Annotated[int, Field(ge=1, le=255)] = 40
    """How strong an outline must be; higher leaves fewer strokes."""
    simplify: Annotated[float, Field(ge=0.5, le=16)] = 2.5
    """How much the outlines are smoothed; higher leaves fewer and rounder strokes."""
    shortest: Annotated[float, Field(ge=0, le=256)] = 40.0
    """A shorter stroke is left out."""
    thickness: Annotated[float, Field(ge=1, le=32)] = 7.0
    """The pen."""


def annotate(image: Picture, params: Params) -> Picture:
    """Return the strokes in white on black, (h w 3)."""
    scale = min(image.shape[:2]) / 512
    smooth = cv2.GaussianBlur(image, (0, 0), max(params.simplify * scale, 0.3))
    lines = cv2.Canny(smooth, params.threshold / 2, params.threshold, L2gradient=True)
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(
        lines, connectivity=8
    )  # boxes: components (x y width height area)
    long = np.asarray(boxes)[:, 4] >= params.shortest * scale
    long[0] = False  # the paper
    pen = max(1, round(params.thickness * scale))
    strokes = np.where(long[np.asarray(labels)], 255, 0).astype(np.uint8)
    return to_picture(cv2.dilate(strokes, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (pen, pen))))
