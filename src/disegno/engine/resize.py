"""Pictures at another size, as A1111 fits them: stretched, cut, or laid on their own stretched edges."""

import numpy as np
from PIL import Image

from disegno.annotators.maps import Picture
from disegno.core.request import InitResizeMode

_LANCZOS = Image.Resampling.LANCZOS


def resized(picture: Picture, width: int, height: int) -> Picture:
    """Return the picture (h w) or (h w c) at this size, both sides stretched as they must be."""
    if picture.shape[:2] == (height, width):
        return picture
    return np.array(Image.fromarray(picture).resize((width, height), _LANCZOS))


def fitted(picture: Picture, width: int, height: int, mode: InitResizeMode) -> Picture:
    """Return the picture (h w) or (h w c) on a canvas. A1111's resize_image, modes 0 to 2.

    stretch, latent: both sides as they must be; crop: covers the canvas, the middle is kept; fill: lies within it, its
    edges are drawn out.
    """
    if mode in ("stretch", "latent"):
        return resized(picture, width, height)
    old_height, old_width = picture.shape[:2]
    is_wider = width / height > old_width / old_height  # the canvas, than the picture
    by_width = is_wider if mode == "crop" else not is_wider
    size = (
        (width, max(1, old_height * width // old_width))
        if by_width
        else (max(1, old_width * height // old_height), height)
    )
    inner = resized(picture, *size)
    return _on_canvas(inner, width, height)


def _on_canvas(inner: Picture, width: int, height: int) -> Picture:
    """Return the middle of what is larger than the canvas; edges drawn out where it is smaller."""
    for axis, side in ((0, height), (1, width)):
        length = inner.shape[axis]
        before = side // 2 - length // 2
        if before < 0:
            inner = np.take(inner, range(-before, -before + side), axis=axis)
        elif length < side:
            inner = np.concatenate(
                [_drawn_out(inner, axis, 0, before), inner, _drawn_out(inner, axis, length, side - length - before)],
                axis=axis,
            )
    return np.ascontiguousarray(inner)


def _drawn_out(inner: Picture, axis: int, edge: int, length: int) -> Picture:
    """Return the picture's edge, drawn out to this length. A1111 parity: Pillow's bicubic of a box without area."""
    if not length:
        return np.take(inner, range(0), axis=axis)
    height, width = inner.shape[:2]
    size, box = ((width, length), (0, edge, width, edge)) if axis == 0 else ((length, height), (edge, 0, edge, height))
    return np.array(Image.fromarray(inner).resize(size, box=box))
