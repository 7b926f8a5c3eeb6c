"""Masks: white is drawn anew. Read, softened, cut out, and laid over the result, as A1111 does.

A mask is uint8 (h w): 255 white. Everything here is a pure function.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from disegno.annotators.maps import Picture

Mask = NDArray[np.uint8]  # h w

_OPAQUE = 128  # A1111 parity: an alpha above this is white
_FILL_BLURS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))  # A1111 parity: (radius in pixels, times)


def mask_of(image: Picture, binary: bool = True) -> Mask:
    """Return the mask that a picture (h w 3 or 4) shows: its transparency where it has some, else its brightness."""
    if image.shape[2] == 4 and (image[:, :, 3] != 255).any():
        alpha = image[:, :, 3]
        return np.where(alpha > _OPAQUE, 255, 0).astype(np.uint8) if binary else np.array(alpha)
    return np.array(Image.fromarray(image[:, :, :3]).convert("L"))


def box_mask(edges: tuple[float, float, float, float], width: int, height: int) -> Mask:
    """Return the mask of a box, (h w); a pixel that it covers in part is grey.

    `edges`: left, top, right and bottom, as shares of the width and the height.
    """
    left, top, right, bottom = edges
    rows, columns = _covered(top, bottom, height), _covered(left, right, width)
    return np.around(np.outer(rows, columns) * 255).astype(np.uint8)


def _covered(begin: float, end: float, length: int) -> NDArray[np.float64]:
    """Return how much of each pixel of a side lies between two shares of it, (length,), in [0, 1]."""
    place = np.arange(length)
    return np.clip(np.minimum(place + 1, end * length) - np.maximum(place, begin * length), 0, 1)


def blur(mask: Mask, x: int, y: int) -> Mask:
    """Return the mask with its edges softened by Gaussians of these sigmas, in pixels.

    Only what lies around the white is worked through: in a picture of 64 million pixels, all of it takes 40 seconds.
    """
    around = box_around(mask, 2 * max(_reach(x), _reach(y)) + 1)
    if around is None:
        return mask
    soft = around.cut(mask)
    for sigma, kernel in ((x, (2 * _reach(x) + 1, 1)), (y, (1, 2 * _reach(y) + 1))):
        if sigma > 0:
            soft = cv2.GaussianBlur(soft, kernel, sigma).astype(np.uint8)
    whole = np.zeros_like(mask)
    whole[around.top : around.bottom, around.left : around.right] = soft
    return whole


def _reach(sigma: int) -> int:
    """Return how many pixels to each side a Gaussian looks. A1111 parity."""
    return int(2.5 * sigma + 0.5)


@dataclass(frozen=True)
class Box:
    """A part of a picture, in pixels; right and bottom are not in it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    def cut(self, picture: Picture) -> Picture:
        """Return that part of a picture or mask (h w ...)."""
        return np.ascontiguousarray(picture[self.top : self.bottom, self.left : self.right])


def box_around(mask: Mask, padding: int) -> Box | None:
    """Return the box of what is not black, with this many pixels around it; None where all is black."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    height, width = mask.shape
    return Box(
        max(int(columns[0]) - padding, 0),
        max(int(rows[0]) - padding, 0),
        min(int(columns[-1]) + 1 + padding, width),
        min(int(rows[-1]) + 1 + padding, height),
    )


def _grown(begin: int, end: int, wanted: float, limit: int) -> tuple[int, int]:
    """Return a span grown evenly to `wanted`, moved inside [0, limit], and cut where it is longer than that."""
    more = int(wanted - (end - begin))
    begin, end = begin - more // 2, end + more - more // 2
    if end >= limit:
        begin, end = begin - (end - limit), limit
    if begin < 0:
        begin, end = 0, end - begin
    return begin, min(end, limit)


def grown_to_shape(box: Box, width: int, height: int, picture_width: int, picture_height: int) -> Box:
    """Return the box grown to the shape of width x height, as far as the picture lets it. A1111's expand_crop_region.

    The picture's edges may keep it from that shape.
    """
    shape = width / height
    if box.width / box.height > shape:
        top, bottom = _grown(box.top, box.bottom, box.width / shape, picture_height)
        return Box(box.left, top, box.right, bottom)
    left, right = _grown(box.left, box.right, box.height * shape, picture_width)
    return Box(left, box.top, right, box.bottom)


def latent_mask(mask: Mask, height: int, width: int, binary: bool = True) -> Tensor:
    """Return the mask in latent cells, (1 1 height width), in [0, 1]; `binary`: 0 or 1 only."""
    small = Image.fromarray(mask).convert("RGB").resize((width, height))  # A1111 parity: Pillow's bicubic
    cells = np.moveaxis(np.array(small, dtype=np.float32), 2, 0)[0] / 255
    return torch.from_numpy(np.around(cells) if binary else cells)[None, None]


def filled(picture: Picture, mask: Mask) -> Picture:
    """Return the picture (h w 3) with the masked part filled by the colours around it, blurred the more the deeper in.

    A1111's masking.fill.
    """
    base = Image.fromarray(picture)
    seen = Image.new("RGBa", base.size)
    seen.paste(base.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(Image.fromarray(mask)))
    result = Image.new("RGBA", base.size)
    for radius, times in _FILL_BLURS:
        blurred = seen.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            result.alpha_composite(blurred)
    return np.array(result.convert("RGB"))


def widened(mask: Mask) -> Mask:
    """Return the mask twice as strong, 255 at most: what is laid over the whole picture's seam."""
    return np.clip(mask.astype(np.int32) * 2, 0, 255).astype(np.uint8)


def laid_over(drawn: Picture, original: Picture, mask: Mask) -> Picture:
    """Return what was drawn where the mask is white, the original where it is black, both bit for bit, (h w 3)."""
    return np.array(Image.composite(Image.fromarray(drawn), Image.fromarray(original), Image.fromarray(mask)))
