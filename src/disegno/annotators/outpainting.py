"""A window in the middle of black: CtrLoRA's and UniControl's condition for drawing what is around it."""

from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture

TITLE = "Outpainting"
SUMMARY = "The middle of the picture, with black around it to fill."
SIZING = "own"


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """The window, in per cent of the picture."""

    height: Annotated[float, Field(ge=0, le=100)] = 50.0
    """How high."""
    width: Annotated[float, Field(ge=0, le=100)] = 50.0
    """How wide."""
    seed: Annotated[int, Field(ge=-1, le=2**32 - 1)] = -1
    """-1 takes the two numbers above; otherwise they are drawn as CtrLoRA drew them: evenly from 20 to 79 per cent."""


def annotate(image: Picture, params: Params) -> Picture:
    """Return the window on black, (h w 3)."""
    shares = params.height, params.width
    if params.seed >= 0:
        shares = tuple(np.random.default_rng(params.seed).integers(20, 80, 2))
    rows, columns = (_middle(side, float(share)) for side, share in zip(image.shape, shares, strict=False))
    window = np.zeros_like(image)
    window[rows, columns] = image[rows, columns]
    return window


def _middle(side: int, share: float) -> slice:
    """Return the middle `share` per cent of a side."""
    length = int(side / 100 * share)
    return slice((side - length) // 2, (side + length) // 2)
