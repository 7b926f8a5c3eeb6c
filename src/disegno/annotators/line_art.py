"""Drawn lines, white on black, with soft tones."""

from typing import Annotated, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "Line art"
SUMMARY = "The dark lines of a picture, white on black, with soft tones."
A1111_NAMES = ("lineart_standard", "lineart_standard (from white bg & black line)")
SIZING = "padded"


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """Two ways of seeing a line."""

    method: Literal["standard", "dog"] = "standard"
    """standard: what is darker than its surroundings, as A1111 does it; dog: lines of one chosen width."""
    surroundings: Annotated[float, Field(ge=1, le=64)] = 6.0
    """How wide, in pixels, the surroundings are (standard)."""
    width: Annotated[float, Field(ge=0.3, le=16)] = 1.0
    """The width of the lines, in pixels (dog)."""
    gain: Annotated[float, Field(ge=0.1, le=10)] = 1.0
    """How strongly faint lines are drawn (dog)."""


def _standard(x: NDArray[np.float32], surroundings: float) -> NDArray[np.float32]:
    """Return how much darker than its surroundings each pixel is, (h w); a typical line is 127."""
    darker = np.asarray(cv2.GaussianBlur(x, (0, 0), surroundings) - x, np.float32).min(axis=2).clip(0, 255)
    lines = darker[darker > 8]
    typical = max(16.0, float(np.median(lines))) if lines.size else 16.0
    return darker / np.float32(typical) * 127


def _dog(x: NDArray[np.float32], width: float, gain: float) -> NDArray[np.float32]:
    """Return lines, (h w): a difference of Gaussians, k = 1.6, with a soft threshold (Winnemoller et al. 2012)."""
    lightness = np.asarray(cv2.cvtColor(x / 255, cv2.COLOR_RGB2LAB))[:, :, 0]  # 0 to 100
    fine, coarse = cv2.GaussianBlur(lightness, (0, 0), width), cv2.GaussianBlur(lightness, (0, 0), 1.6 * width)
    return np.asarray(255 * np.tanh(gain * np.maximum(coarse - fine - 0.5, 0) / 2), np.float32)


def annotate(image: Picture, params: Params) -> Picture:
    """Return the lines in white on black, (h w 3)."""
    x = image.astype(np.float32)
    return to_picture(
        _dog(x, params.width, params.gain) if params.method == "dog" else _standard(x, params.surroundings)
    )
