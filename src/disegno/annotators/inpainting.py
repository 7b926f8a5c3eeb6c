"""A black rectangle over the picture: CtrLoRA's and UniControl's condition for filling a hole."""

from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture

TITLE = "Inpainting"
SUMMARY = "The picture with a black rectangle to fill."
SIZING = "own"

Share = Annotated[float, Field(ge=0, le=100)]


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """How far the hole reaches from the centre, in per cent of half the picture."""

    up: Share = 40.0
    """How far up."""
    down: Share = 40.0
    """How far down."""
    left: Share = 40.0
    """How far to the left."""
    right: Share = 40.0
    """How far to the right."""
    seed: Annotated[int, Field(ge=-1, le=2**32 - 1)] = -1
    """-1 takes the four numbers above; otherwise they are drawn as CtrLoRA drew them: normally, around 50 per cent."""


def annotate(image: Picture, params: Params) -> Picture:
    """Return the picture with its hole, (h w 3)."""
    shares = np.array([params.up, params.down, params.left, params.right])
    if (
        params.seed >= 0
    ):  # CtrLoRA: N(0.5, 0.5) on a scale of 20 to 80 per cent; what falls outside the picture is cut off
        shares = (20 + 60 * np.random.default_rng(params.seed).normal(0.5, 0.5, 4)).clip(0, 100)
    height, width = image.shape[:2]
    up, down = (int(height / 100 * share) for share in shares[:2])
    left, right = (int(width / 100 * share) for share in shares[2:])
    holed = image.copy()
    holed[(height - up) // 2 : (height + down) // 2, (width - left) // 2 : (width + right) // 2] = 0
    return holed
