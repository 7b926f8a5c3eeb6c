"""Soft edges: outlines as a gradient in Lab sees them, strong where the picture changes much. Needs no net."""

from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "Soft edge"
SUMMARY = "Soft outlines, white on black, stronger where the picture changes more."
SIZING = "padded"

# The gradient, in Lab units a pixel, at which an edge is drawn at 63 %, and how steeply fainter ones fade: chosen by
# eye on photographs and clean drawings, so that outlines are full and texture is faint.
_KNEE, _STEEPNESS = 6.0, 1.5


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """How much is seen."""

    scales: Annotated[int, Field(ge=1, le=5)] = 3
    """How many scales are looked at; more gives softer, broader outlines and less texture."""
    gain: Annotated[float, Field(ge=0.1, le=10)] = 1.0
    """How strongly faint edges are drawn."""
    levels: Annotated[int, Field(ge=0, le=32)] = 0
    """Reduce the map to so many tones, which hides what it knows of the picture ("safe" maps); 0 keeps them all."""


def _gradient(image: Picture, scales: int) -> NDArray[np.float32]:
    """Return the gradient in Lab units a pixel, (h w): the mean over sigma = 1, 2, 4 ... pixels.

    Below 512 pixels the sigmas shrink with the picture. Each gradient is normalised by its scale (Lindeberg 1998,
    gamma = 1/2), so that an edge counts alike whether sharp or soft.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)  # h w 3
    finest = min(max(min(image.shape[:2]) / 512, 0.5), 1.0)
    total = np.zeros(image.shape[:2], np.float32)
    for sigma in (finest * 2.0**n for n in range(scales)):
        smooth = cv2.GaussianBlur(lab, (0, 0), sigma)
        dx = np.asarray(cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8))
        dy = np.asarray(cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8))
        total += np.sqrt((dx**2 + dy**2).sum(axis=2)) * sigma**0.5
    return total / np.float32(scales)


def annotate(image: Picture, params: Params) -> Picture:
    """Return the soft edges in white on black, (h w 3)."""
    edges = 1 - np.exp(-((params.gain * _gradient(image, params.scales) / _KNEE) ** _STEEPNESS))
    if params.levels:
        edges = np.floor(edges * (params.levels + 1)).clip(0, params.levels) / params.levels
    return to_picture(edges * 255)
