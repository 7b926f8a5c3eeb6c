"""A wardrobe of blobs for every noun of the world: the real tables, layouts and captions, without the drawings."""

import sys
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))  # the recipes are not installed

from recipes.diorama.world.pack import Wardrobe
from recipes.diorama.world.sprites import look_of, premultiplied
from recipes.diorama.world.vocabulary import nouns

_SHAPES = ((200, 120), (120, 150), (90, 190), (160, 160))  # width, height in pixels


def blob(colour: tuple[int, int, int], width: int, height: int) -> NDArray[np.uint8]:
    """Return a shaded ellipse of one colour, standing in the middle of a transparent picture of 256 x 256."""
    picture = np.zeros((256, 256, 4), np.uint8)
    cv2.ellipse(picture, (128, 240 - height // 2), (width // 2, height // 2), 0, 0, 360, (*colour, 255), -1)
    shade = np.linspace(1.0, 0.8, 256)[:, None, None]
    picture[..., :3] = (picture[..., :3] * shade).astype(np.uint8)
    return picture


@cache
def blobs() -> Wardrobe:
    """Return a blob for every noun, in four shapes and two colours; red ones in 3D, blue ones in the other styles."""
    drawn = {style: [blob(colour, w, h) for w, h in _SHAPES] for style, colour in _COLOURS.items()}
    looks = [look_of(picture) for picture in drawn["3d"]]
    cut = {
        style: [
            premultiplied(p)[b[1] : b[3], b[0] : b[2]] for p, b in zip(pictures, (k.box for k in looks), strict=True)
        ]
        for style, pictures in drawn.items()
    }
    shape = {noun.code: number % len(_SHAPES) for number, noun in enumerate(nouns())}
    return Wardrobe(
        {code: looks[k] for code, k in shape.items()},
        {style: {code: pictures[k] for code, k in shape.items()} for style, pictures in cut.items()},
    )


_COLOURS = {"3d": (220, 40, 36), "glossy": (60, 90, 230), "flat": (60, 90, 230)}
