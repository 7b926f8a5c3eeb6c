"""The same affine map for a pair's two pictures: resized to cover the canvas, cropped to it, flipped or not.

Where a pixel of the target goes, the condition's pixel goes, too: what differs is only how each is interpolated. A
photograph is averaged or takes Lanczos; a condition is resized by the rules of its kind (`annotators.maps.resize_map`),
so that labels stay labels and lines stay thin.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from disegno.annotators.maps import check_pixels, resize_map
from disegno.training.pairs import Picture, Sample

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Fit:
    """How a picture comes to its canvas: resized to `scaled`, cut out at `corner` (left, top), mirrored if `flip`."""

    scaled: Size
    corner: tuple[int, int]
    canvas: Size
    flip: bool = False


def cover(size: Size, canvas: Size, at: tuple[float, float] = (0.5, 0.5), flip: bool = False) -> Fit:
    """Return how a picture of `size` covers the canvas. `at`: where each side is cut, 0..1; 0.5: the middle."""
    (width, height), (canvas_width, canvas_height) = size, canvas
    k = max(canvas_width / width, canvas_height / height)
    scaled = max(canvas_width, round(width * k)), max(canvas_height, round(height * k))
    left, top = (round(share * (long - short)) for share, long, short in zip(at, scaled, canvas, strict=True))
    return Fit(scaled, (left, top), canvas, flip)


def place(fit: Fit, size: Size, x: float, y: float) -> tuple[float, float]:
    """Return where the point (x, y) of a picture of `size` lies on the canvas; pixel i covers i to i + 1."""
    x, y = x * fit.scaled[0] / size[0] - fit.corner[0], y * fit.scaled[1] / size[1] - fit.corner[1]
    return (fit.canvas[0] - x if fit.flip else x), y


def apply(picture: Picture, fit: Fit, is_map: bool) -> Picture:
    """Return the picture (h w 3) on its canvas, a new array. `is_map`: it is a condition. Raises BadImage."""
    (left, top), (width, height) = fit.corner, fit.canvas
    scaled = resize_map(picture, *fit.scaled, centred=True) if is_map else resize_photo(picture, *fit.scaled)
    cut = scaled[top : top + height, left : left + width]
    return np.ascontiguousarray(cut[:, ::-1] if fit.flip else cut)


def resize_photo(picture: Picture, width: int, height: int) -> Picture:
    """Return the photograph (h w 3) at another size: averaged if it shrinks, Lanczos if it grows (CtrLoRA's choice)."""
    old_height, old_width = picture.shape[:2]
    if (old_width, old_height) == (width, height):
        return picture.copy()
    check_pixels(width, height)
    how = cv2.INTER_AREA if width * height < old_width * old_height else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), np.uint8)


def align(sample: Sample, canvas: Size, at: tuple[float, float] = (0.5, 0.5), flip: bool = False) -> Sample:
    """Return the pair on a canvas (width, height): both pictures through one `cover`. Raises BadImage."""
    height, width = sample.target.shape[:2]
    fit = cover((width, height), canvas, at, flip)
    return Sample(apply(sample.target, fit, False), apply(sample.condition, fit, True), sample.caption)
