"""Dark lines on white paper turned into the light lines on black that edge controls were trained on."""

from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture

TITLE = "Invert"
SUMMARY = "The negative: for black lines on white paper."
A1111_NAMES = ("invert", "invert (from white bg & black line)")
SIZING = "own"


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """No parameters."""


def annotate(image: Picture, params: Params) -> Picture:
    """Return 255 - image, (h w 3)."""
    return 255 - image
