"""Three tones in smooth patches: for pictures that hide a form in their light and dark."""

from typing import Annotated

import cv2
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "Illusion"
SUMMARY = "Three smooth tones, for hiding a form in light and dark."


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """The tones, and how smooth their borders are."""

    dark: Annotated[int, Field(ge=0, le=255)] = 85
    """What is darker becomes black."""
    light: Annotated[int, Field(ge=0, le=255)] = 170
    """What is lighter becomes white; between the two is grey."""
    close: Annotated[int, Field(ge=1, le=63)] = 11
    """Dark gaps up to this many pixels are filled."""
    open: Annotated[int, Field(ge=1, le=63)] = 3
    """Light specks up to this many pixels are removed."""

    def __post_init__(self) -> None:
        if self.dark > self.light:
            raise ValueError(f"dark is {self.dark} and light is {self.light}: swap them")


def annotate(image: Picture, params: Params) -> Picture:
    """Return the three tones, (h w 3)."""
    tone = image[:, :, 2]  # CtrLoRA parity: the blue channel alone
    tones = np.where(tone < params.dark, 0, np.where(tone > params.light, 255, 127)).astype(np.uint8)
    for operation, size in ((cv2.MORPH_CLOSE, params.close), (cv2.MORPH_OPEN, params.open)):
        tones = cv2.morphologyEx(tones, operation, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
    return to_picture(tones)
