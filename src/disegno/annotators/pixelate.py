"""Pixel art: few large pixels in few colours."""

from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "Pixelate"
SUMMARY = "Few large pixels in few colours."

_FEWEST_PIXELS = 32  # CtrLoRA: no side is reduced below this
_ROUNDS = 12


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """CtrLoRA's published condition was trained with sizes of 4 to 8 and 8 to 16 colours."""

    size: Annotated[int, Field(ge=1, le=64)] = 8
    """The side of a large pixel."""
    colors: Annotated[int, Field(ge=2, le=64)] = 16
    """How many colours."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Where the search for the colours starts."""


def _nearest(pixels: NDArray[np.float32], colours: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the index of each pixel's nearest colour, (n,)."""
    return ((colours**2).sum(axis=1)[None] - 2 * pixels @ colours.T).argmin(axis=1)


def find_colours(pixels: NDArray[np.float32], num_colours: int, seed: int) -> NDArray[np.float32]:
    """Return the colours (at most num_colours, 3) that stand for the pixels (n 3): k-means, started by k-means++."""
    random = np.random.default_rng(seed)
    colours = pixels[random.integers(len(pixels))][None]
    far = ((pixels - colours[0]) ** 2).sum(axis=1)
    while len(colours) < num_colours and far.any():
        colours = np.concatenate([colours, pixels[random.choice(len(pixels), p=far / far.sum(dtype=np.float64))][None]])
        far = np.minimum(far, ((pixels - colours[-1]) ** 2).sum(axis=1))
    for _ in range(_ROUNDS):
        nearest = _nearest(pixels, colours)
        size = np.bincount(nearest, minlength=len(colours))[:, None]
        total = np.stack([np.bincount(nearest, pixels[:, c], len(colours)) for c in range(3)], axis=1)
        colours = np.where(size > 0, total / np.maximum(size, 1), colours).astype(np.float32)
    return colours


def annotate(image: Picture, params: Params) -> Picture:
    """Return the pixel art, (h w 3)."""
    height, width = image.shape[:2]
    size = (
        min(width, max(width // params.size, _FEWEST_PIXELS)),
        min(height, max(height // params.size, _FEWEST_PIXELS)),
    )
    small = to_picture(cv2.resize(image, size, interpolation=cv2.INTER_LANCZOS4))
    pixels = small.reshape(-1, 3).astype(np.float32)
    colours = find_colours(pixels, params.colors, params.seed)
    flat = to_picture(np.rint(colours)[_nearest(pixels, colours)].reshape(small.shape))
    return to_picture(cv2.resize(flat, (width, height), interpolation=cv2.INTER_NEAREST))
