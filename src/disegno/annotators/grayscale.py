"""The picture without its colours: the condition for colouring."""

import cv2
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "Grayscale"
SUMMARY = "The picture without its colours."
SIZING = "own"


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """No parameters."""


def annotate(image: Picture, params: Params) -> Picture:
    """Return the luma (ITU-R BT.601), (h w 3)."""
    return to_picture(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
