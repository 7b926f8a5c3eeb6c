"""The picture's contents, swirled: its colours and textures stay, its forms go. ControlNet 1.1's content shuffle."""

from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture
from disegno.core.errors import BadImage

TITLE = "Shuffle"
SUMMARY = "The picture swirled, so that colours and textures stay and forms go."
A1111_NAMES = ("shuffle",)

_LONGEST = 32766  # OpenCV's remap counts in 16 bits


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """How it is swirled."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Another number, another swirl."""
    grain: Annotated[int, Field(ge=16, le=1024)] = 256
    """How far apart, in pixels, the swirl's own points are: smaller tears the picture into smaller pieces."""


def _ramp(random: np.random.RandomState, height: int, width: int, grain: int) -> NDArray[np.float64]:
    """Return smooth noise, (height width), stretched to reach from 0 to 1."""
    points = random.uniform(size=(height // grain + 2, width // grain + 2))
    size = width + 2 * grain, height + 2 * grain
    noise = np.asarray(cv2.resize(points, size, interpolation=cv2.INTER_CUBIC), np.float64)
    noise = noise[grain : grain + height, grain : grain + width]
    low, high = noise.min(), noise.max()
    return (noise - low) / (high - low) if high > low else np.zeros_like(noise)


def annotate(image: Picture, params: Params) -> Picture:
    """Return the swirled picture, (h w 3): every pixel is taken from where two smooth noises point to.

    Raises BadImage.
    """
    height, width = image.shape[:2]
    if max(height, width) > _LONGEST:
        raise BadImage(f"A picture of {width} x {height} cannot be shuffled: no side may be over {_LONGEST} pixels.")
    random = np.random.RandomState(params.seed)  # ControlNet parity: numpy's old generator, x before y
    x = _ramp(random, height, width, params.grain) * (width - 1)
    y = _ramp(random, height, width, params.grain) * (height - 1)
    return to_picture(cv2.remap(image, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR))
