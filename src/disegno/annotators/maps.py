"""Control maps: what kind of drawing an array is, and how each kind is resized without spoiling it.

A photograph may be interpolated; labels (a segmentation's flat colours) may not; black-and-white shapes must stay black
and white; and edges of one pixel must stay one pixel wide. The numbers are those of A1111's ControlNet extension, so
that its users see the same maps.
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from disegno.core.errors import BadImage

Picture = NDArray[np.uint8]
"""RGB, (h w 3), uint8."""

MapKind = Literal["picture", "labels", "shapes", "edges"]

MAX_PIXELS = 64 * 2**20
"""No picture is made larger than this (192 MiB as RGB), whatever its shape."""

# Thinning by hit-or-miss with the L alphabet (Golay 1969; Gonzalez and Woods, Digital Image Processing, 9.5.5):
# 1 must be set, -1 clear, 0 may be either; each in four rotations. The second pair removes spurs of one pixel.
_THIN = (((-1, -1, -1), (0, 1, 0), (1, 1, 1)), ((0, -1, -1), (1, 1, -1), (0, 1, 0)))
_PRUNE = (((-1, -1, -1), (-1, 1, -1), (0, 0, -1)), ((-1, -1, -1), (-1, 1, -1), (-1, 0, 0)))
_MANY_COLOURS = 200  # A1111 parity: fewer are a segmentation
_MAX_THINNINGS = 32  # A1111 parity: no edge is thinned by more

# the four lines through a pixel's 3 x 3 neighbourhood
_LINES = (
    ((0, 0, 0), (1, 1, 1), (0, 0, 0)),
    ((0, 1, 0),) * 3,
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
)


def to_picture(x: NDArray[np.generic]) -> Picture:
    """Return x as RGB (h w 3): clipped to 0..255, cut off after the point; grey (h w) or (h w 1) in three channels."""
    if x.dtype != np.uint8:
        x = np.clip(x, 0, 255).astype(np.uint8)
    if x.ndim == 2 or x.shape[2] == 1:
        x = np.repeat(x.reshape(*x.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(x, dtype=np.uint8)


def peaks(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return x (h w) where it is the largest along one of the lines through its neighbourhood, and 0 elsewhere."""
    y = np.zeros_like(x)
    for line in _LINES:
        ridge = np.asarray(cv2.dilate(x, np.array(line, np.uint8))) == x
        y[ridge] = x[ridge]
    return y


def _count_colours(image: Picture) -> int:
    """Return how many colours (h w 3) has; from _MANY_COLOURS on, only that it has as many."""
    packed = (image.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)).ravel()
    for sample in (packed[:: packed.size // 4096 + 1], packed):  # a photograph is known by a few thousand of its pixels
        ordered = np.sort(sample)
        num_colours = 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1]))
        if num_colours >= _MANY_COLOURS:
            return _MANY_COLOURS
    return num_colours


def kind_of(image: Picture) -> MapKind:
    """Return what kind of map the three channels (h w 3) make up, as A1111 judges it: by its number of colours."""
    num_colours = _count_colours(image)
    if 2 < num_colours < _MANY_COLOURS:
        return "labels"
    if num_colours != 2 or image.min() >= 16 or image.max() <= 240:
        return "picture"
    opened = np.asarray(cv2.morphologyEx(image, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)))
    lost, bright = np.count_nonzero(opened < image), np.count_nonzero(image > 127)
    return "edges" if 2 * lost > bright else "shapes"


def _otsu(grey: Picture) -> Picture:
    return np.asarray(cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1], np.uint8)


def _strip(x: Picture, patterns: tuple[tuple[tuple[int, ...], ...], ...]) -> bool:
    """Clear, in place, the pixels of x (h w) that fit a pattern in any rotation; return whether there were any."""
    changed = False
    for turns in range(4):
        for pattern in patterns:
            kernel = np.ascontiguousarray(np.rot90(np.array(pattern, np.int32), turns))
            hits = np.asarray(cv2.morphologyEx(x, cv2.MORPH_HITMISS, kernel)) > 127
            x[hits] = 0
            changed = changed or bool(hits.any())
    return changed


def thin(binary: Picture, prune: bool) -> Picture:
    """Return the black-and-white map (h w) with its lines thinned to one pixel."""
    x = binary.copy()
    for _ in range(_MAX_THINNINGS):
        if not _strip(x, _THIN):
            break
    if prune:
        _strip(x, _PRUNE)
    return x


def check_pixels(width: int, height: int) -> None:
    """Raise BadImage when a picture of this size would be larger than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise BadImage(
            f"The picture would become {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million are possible. "
            "Its sides differ too much: crop it first, or choose a smaller size or the resize mode 'stretch'."
        )


def resize_map(image: Picture, width: int, height: int, centred: bool = False) -> Picture:
    """Return the map (h w c) at another size, by the rules of its kind; c: 3, or 4 where the last is a mask.

    `centred`: labels are taken at their pixels' centres, so that they stay on the picture that they were made from;
    else at their corners, as A1111 does, which moves them by up to a pixel.
    """
    old_height, old_width = image.shape[:2]
    colour, mask = image[:, :, :3], image[:, :, 3:]
    if (old_width, old_height) != (width, height):
        check_pixels(width, height)
        kind = kind_of(colour)
        larger = width * height > old_width * old_height
        smaller = width * height < old_width * old_height
        nearest = cv2.INTER_NEAREST_EXACT if centred else cv2.INTER_NEAREST
        how = nearest if kind == "labels" else cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        colour = np.asarray(cv2.resize(colour, (width, height), interpolation=how), np.uint8)
        if mask.size:
            mask = np.asarray(cv2.resize(mask, (width, height), interpolation=how), np.uint8)[:, :, None]
        if kind in ("shapes", "edges"):
            colour = _sharpen(colour, thin_lines=kind == "edges", prune=larger)
    if mask.size:
        return np.concatenate([colour, np.where(mask > 127, 255, 0).astype(np.uint8)], axis=2)
    return np.array(colour, np.uint8)


def _sharpen(colour: Picture, thin_lines: bool, prune: bool) -> Picture:
    """Return the interpolated map (h w 3) in black and white again."""
    grey = np.asarray(colour.mean(axis=2, dtype=np.float32), np.uint8)
    if not thin_lines:
        return to_picture(_otsu(grey))
    return to_picture(thin(_otsu(peaks(grey.astype(np.float32)).astype(np.uint8)), prune))


def resize_short_side(image: Picture, resolution: int) -> Picture:
    """Return the picture with its short side at `resolution` pixels: averaged if it shrinks, cubic if it grows."""
    height, width = image.shape[:2]
    k = resolution / min(height, width)
    size = max(1, round(width * k)), max(1, round(height * k))
    check_pixels(*size)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if k > 1 else cv2.INTER_AREA), np.uint8)
