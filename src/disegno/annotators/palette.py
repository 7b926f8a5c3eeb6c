"""A grid of flat colours: where which colour is, and nothing else."""

from typing import Annotated

import cv2
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "Palette"
SUMMARY = "A coarse grid of the picture's colours."
A1111_NAMES = ("color", "t2ia_color_grid")  # where A1111 makes every picture a square, this one keeps its shape


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """The grid."""

    cell: Annotated[int, Field(ge=2, le=512)] = 64
    """The side of a cell, in pixels; 64 is CtrLoRA's and T2I-Adapter's, at 512 pixels."""


def annotate(image: Picture, params: Params) -> Picture:
    """Return the grid, (h w 3): reduced by `cell` with bicubic interpolation, enlarged without any."""
    height, width = image.shape[:2]
    grid = max(1, width // params.cell), max(1, height // params.cell)
    small = cv2.resize(image, grid, interpolation=cv2.INTER_CUBIC)
    return to_picture(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST))
