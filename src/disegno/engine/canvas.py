"""From an InitImage to a canvas: the picture at the size that is drawn, its mask, and how the result is put back."""

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image
from skimage.exposure import match_histograms

from disegno.annotators.maps import Picture
from disegno.core.errors import RequestError
from disegno.core.request import InitImage, Outpaint, ResizeMode
from disegno.engine.album import Album
from disegno.engine.masks import Box, Mask, blur, box_around, filled, grown_to_shape, laid_over, mask_of, widened
from disegno.engine.resize import fitted, resized


@dataclass(frozen=True)
class Canvas:
    """A picture, ready to be drawn over.

    `picture`: at the canvas's size, (h w 3). `mask`: of it, (h w), white is drawn anew; None: all. `whole`: what the
    result is laid on, and `overlay` its mask, of the canvas's size, or of the picture's own where `box`, the part of it
    that the canvas shows, is given. `full_size`: (width, height) of the picture that `box` is a part of. `own`: the
    picture at its own size, where the canvas shows all of it and nothing else, and `resize` how it was fitted.
    """

    picture: Picture
    whole: Picture
    mask: Mask | None = None
    overlay: Mask | None = None
    box: Box | None = None
    own: Picture | None = None
    resize: ResizeMode = "crop"

    @property
    def full_size(self) -> tuple[int, int]:
        return self.whole.shape[1], self.whole.shape[0]

    def start(self, init: InitImage) -> Picture:
        """Return what is encoded: the picture, its masked part filled with colour unless that stays as it is.

        A1111 parity: also where the part begins as noise or as nothing, so that nothing of it shows beside the mask.
        """
        if self.mask is None or init.fill == "original":
            return self.picture
        return filled(self.picture, self.mask)

    def finish(self, drawn: Image.Image, init: InitImage) -> Image.Image:
        """Return the result: what was drawn, in the picture's colours if asked, put back where it belongs."""
        result = np.array(drawn)
        if init.colour_correction:
            result = coloured_as(result, self.start(init))  # A1111 parity: as it was encoded
        if self.box is not None:
            part = fitted(result, self.box.width, self.box.height, "crop")
            result = self.whole.copy()
            result[self.box.top : self.box.bottom, self.box.left : self.box.right] = part
        if self.overlay is not None:
            result = laid_over(result, self.whole, self.overlay)
        return Image.fromarray(result)


def coloured_as(drawn: Picture, picture: Picture) -> Picture:
    """Return what was drawn with the colours of the picture, (h w 3): its own lightness, their a and b of CIELAB.

    A1111 matches all three histograms and then puts the lightness back.
    """
    lab, wanted = (cv2.cvtColor(image, cv2.COLOR_RGB2LAB) for image in (drawn, picture))
    matched = match_histograms(lab, wanted, channel_axis=2).round().clip(0, 255).astype(np.uint8)
    matched[:, :, 0] = lab[:, :, 0]
    return cv2.cvtColor(matched, cv2.COLOR_LAB2RGB).astype(np.uint8)


def open_canvas(init: InitImage, width: int, height: int, album: Album) -> Canvas:
    """Return the canvas of this size for a picture. Raises BadImage, RequestError where nothing is masked."""
    picture = album.rgb(init.image)
    if init.outpaint is not None:
        return _outpainted(init, init.outpaint, width, height, album)
    mask = _mask(init, picture, album)
    resize: ResizeMode = "stretch" if init.resize == "latent" else init.resize
    if mask is None:
        on_canvas = fitted(picture, width, height, init.resize)
        return Canvas(on_canvas, on_canvas, own=picture, resize=resize)
    if not mask.any():
        raise RequestError(
            f"The mask {_named(init.mask)} is black everywhere, so nothing would be drawn: paint what is to be"
            " drawn anew in white, or use invert."
        )
    if init.only_masked:
        return _masked_part(init, picture, mask, width, height)
    on_canvas = fitted(picture, width, height, init.resize)
    mask = fitted(mask, width, height, init.resize)
    return Canvas(on_canvas, on_canvas, mask, widened(mask), own=picture, resize=resize)


def _named(source: str | None) -> str:
    return "(data)" if source is None or source.startswith("data:") else source


def _mask(init: InitImage, picture: Picture, album: Album) -> Mask | None:
    """Return the picture's mask, (h w), inverted and softened as asked; None where there is none."""
    if init.mask is None:
        return None
    mask = mask_of(album.channels(init.mask), binary=init.mask_mode == "binary")
    mask = resized(255 - mask if init.invert else mask, picture.shape[1], picture.shape[0])
    return _softened(mask, init)


def _softened(mask: Mask, init: InitImage) -> Mask:
    return blur(mask, init.mask_blur, init.mask_blur if init.mask_blur_y is None else init.mask_blur_y)


def _masked_part(init: InitImage, picture: Picture, mask: Mask, width: int, height: int) -> Canvas:
    """Return the canvas of what is masked, with some of what is around it, in the canvas's shape."""
    box = box_around(mask, init.padding)
    assert box is not None, "the mask is not black"
    box = grown_to_shape(box, width, height, picture.shape[1], picture.shape[0])
    part, part_mask = (fitted(box.cut(image), width, height, "fill") for image in (picture, mask))
    return Canvas(part, picture, part_mask, mask, box)


def _outpainted(init: InitImage, grow: Outpaint, width: int, height: int, album: Album) -> Canvas:
    """Return the canvas with the picture inside and its edges drawn out; what lies around it is masked.

    The mask reaches twice its blur into the picture, so that what is new is wholly masked and the seam lies inside.
    """
    inner_width, inner_height = width - grow.left - grow.right, height - grow.top - grow.bottom
    if inner_width < 8 or inner_height < 8:
        raise RequestError(
            f"A canvas of {width} x {height} has no room for a picture and {grow.left} + {grow.right} x "
            f"{grow.top} + {grow.bottom} pixels around it. Give a larger size, or outpaint less."
        )
    inner = fitted(album.rgb(init.image), inner_width, inner_height, init.resize)
    sides = ((grow.top, grow.bottom), (grow.left, grow.right))
    blurs = (init.mask_blur if init.mask_blur_y is None else init.mask_blur_y, init.mask_blur)
    kept = np.zeros((inner_height, inner_width), np.uint8)
    if init.mask is not None:
        own = mask_of(album.channels(init.mask), binary=init.mask_mode == "binary")
        kept = fitted(255 - own if init.invert else own, inner_width, inner_height, init.resize)
    for axis, ((before, after), soft) in enumerate(zip(sides, blurs, strict=True)):
        rows = np.moveaxis(kept, axis, 0)
        reach = min(2 * soft, len(rows) // 4)
        rows[: reach if before else 0] = 255
        rows[len(rows) - (reach if after else 0) :] = 255
    mask = _softened(np.pad(kept, sides, constant_values=255), init)
    for axis, (before, after) in enumerate(sides):  # what is new stays wholly white at the canvas's own edge
        rows = np.moveaxis(mask, axis, 0)
        rows[:before] = 255
        rows[len(rows) - after :] = 255
    picture = np.pad(inner, (*sides, (0, 0)), mode="edge")
    return Canvas(picture, picture, mask, widened(mask))


def size_for(
    init: InitImage, given: tuple[int | None, int | None], own: tuple[int, int], album: Album
) -> tuple[int, int]:
    """Return (width, height) of the canvas: as given, else the picture's shape with at most the model's own area.

    `given`: what the request says; `own`: the model's size. Where the masked part alone is drawn, the model's own size.
    """
    width, height = given
    if (width and height) or init.only_masked:
        return width or own[0], height or own[1]
    grow = init.outpaint
    more = (0, 0) if grow is None else (grow.left + grow.right, grow.top + grow.bottom)
    picture = album.rgb(init.image)
    old = picture.shape[1], picture.shape[0]
    wanted = next(
        ((side - extra) / length for side, extra, length in zip(given, more, old, strict=True) if side),
        min(1.0, (own[0] * own[1] / (old[0] * old[1])) ** 0.5),
    )
    sizes = [max(8, round(length * wanted / 8) * 8) + extra for length, extra in zip(old, more, strict=True)]
    return width or sizes[0], height or sizes[1]
