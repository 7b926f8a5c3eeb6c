"""The picture as it is: for drawings that are already what the control wants to see."""

from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture

TITLE = "None"
SUMMARY = "The picture as it is."
A1111_NAMES = ("none",)
SIZING = "own"


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """No parameters."""


def annotate(image: Picture, params: Params) -> Picture:
    """Return a copy of the picture, (h w 3)."""
    return image.copy()
