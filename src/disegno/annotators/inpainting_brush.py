"""Black brush strokes over the picture: CtrLoRA's condition for repairing what was painted over."""

import math
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture

TITLE = "Inpainting, brush"
SUMMARY = "The picture with black brush strokes to fill."
SIZING = "own"

# CtrLoRA's strokes: 4 to 18 zigzags, each turning by 72 degrees, give or take 24; a brush of 2 % of the short side
_ZIGZAGS = 4, 18
_TURN, _TURN_RANGE = 2 * math.pi / 5, 2 * math.pi / 15
_THINNEST = 0.02

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """The strokes."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Another number, other strokes."""
    fewest: Annotated[int, Field(ge=0, le=50)] = 5
    """At least so many strokes."""
    most: Annotated[int, Field(ge=0, le=50)] = 9
    """At most so many strokes."""
    thickest: Annotated[float, Field(ge=0.02, le=0.5)] = 0.1
    """The thickest brush, as a share of the short side."""

    def __post_init__(self) -> None:
        if self.fewest > self.most:
            raise ValueError(f"fewest is {self.fewest} and most is {self.most}: swap them")


def _stroke(random: np.random.RandomState, width: int, height: int, num_zigzags: int) -> list[Point]:
    """Return a stroke's corners; it stays inside the picture."""
    sharpest = _TURN - random.rand() * _TURN_RANGE
    bluntest = _TURN + random.rand() * _TURN_RANGE
    typical = math.hypot(width, height) / 8
    corners: list[Point] = [(random.randint(0, width), random.randint(0, height))]
    for n in range(num_zigzags):
        angle = random.rand() * (bluntest - sharpest) + sharpest
        angle = 2 * math.pi - angle if n % 2 == 0 else angle
        length = float(np.clip(random.normal(typical, typical // 2), 0, 2 * typical))
        x, y = corners[-1]
        corners.append(
            (min(max(x + length * math.cos(angle), 0), width), min(max(y + length * math.sin(angle), 0), height))
        )
    return corners


def _flip(random: np.random.RandomState, mask: Image.Image) -> Image.Image:
    """Return the mask, mirrored by chance in each direction."""
    for direction in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
        if random.rand() > 0.5:
            mask = mask.transpose(direction)
    return mask


def annotate(image: Picture, params: Params) -> Picture:
    """Return the picture with its strokes, (h w 3)."""
    height, width = image.shape[:2]
    random = np.random.RandomState(params.seed)  # CtrLoRA parity: numpy's old generator, in this order
    thinnest, thickest = (int(share * min(height, width)) for share in (_THINNEST, params.thickest))
    mask = Image.new("L", (width, height), 0)
    for _ in range(random.randint(params.fewest, params.most + 1)):
        num_zigzags = random.randint(_ZIGZAGS[0], _ZIGZAGS[1] + 1)
        brush = random.randint(thinnest, thickest + 1)
        corners = _stroke(random, width, height, num_zigzags)
        draw, radius = ImageDraw.Draw(mask), brush // 2
        draw.line(corners, fill=255, width=brush)
        for x, y in corners:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        mask = _flip(random, mask)
    painted = image.copy()
    painted[np.asarray(_flip(random, mask)) > 127] = 0
    return painted
