"""Pictures from outside: reading them safely, and fitting them to a canvas as A1111's ControlNet extension does."""

import base64
import binascii
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from disegno.annotators.maps import Picture, check_pixels, resize_map, to_picture
from disegno.core.errors import BadImage
from disegno.core.request import ResizeMode

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of 16-bit grey
_ORIENTATION = 0x0112  # EXIF's tag; 5 to 8 stand on a side
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # where a PNG may say one


@dataclass(frozen=True)
class Limits:
    """What a picture from outside may cost. `paths`: whether it may be a file on this machine; a server says no."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64 * 2**20
    paths: bool = True


def read_picture(source: str | Path, limits: Limits | None = None) -> Picture:
    """Return the picture, (h w 3), turned as its EXIF says and laid on white. Raises BadImage.

    `source`: a path, or a data URI (data:image/png;base64,...).
    """
    return to_rgb(read_channels(source, limits))


def read_channels(source: str | Path, limits: Limits | None = None) -> Picture:
    """Return the picture with its transparency if it has some, (h w 3) or (h w 4), uint8. Raises BadImage."""
    limits = limits or Limits()
    return decode(*bytes_of(source, limits), limits)


def decode(data: bytes, name: str, limits: Limits | None = None) -> Picture:
    """Return the picture that a file's bytes hold, (h w 3) or (h w 4), uint8. Raises BadImage."""
    with _opened(data, name, limits or Limits()) as image:
        return _channels(ImageOps.exif_transpose(image), name)


def size_of(data: bytes, name: str, limits: Limits | None = None) -> tuple[int, int]:
    """Return (width, height) in pixels of what `decode` gives, from the file's header alone where that can be.

    Raises BadImage.
    """
    with _opened(data, name, limits or Limits()) as image:
        # Pillow decodes a whole PNG before it says that there is no orientation
        plain = image.format == "PNG" and not any(word in data for word in _PNG_ORIENTATION)
        turned = isinstance(image, TiffImageFile) and _ORIENTATION in image.tag_v2  # by Pillow, when it was opened
        sideways = not (plain or turned) and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        return (image.height, image.width) if sideways else (image.width, image.height)


@contextmanager
def _opened(data: bytes, name: str, limits: Limits) -> Generator[Image.Image]:
    """Open a file's bytes within the limits; whatever goes wrong inside is a BadImage."""
    if len(data) > limits.max_bytes:
        raise BadImage(f"{name} has {len(data)} bytes; at most {limits.max_bytes} are read. Make it smaller.")
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > limits.max_pixels:
                raise BadImage(
                    f"{name} has {image.width} x {image.height} pixels; at most {limits.max_pixels} are read. "
                    "Make it smaller."
                )
            yield image
    except BadImage:
        raise
    except UnidentifiedImageError as error:  # its own words name an object in memory
        raise BadImage(f"{name} cannot be read as a picture: it is none of {', '.join(_FORMATS)}.") from error
    except (
        Exception
    ) as error:  # Pillow's parsers raise whatever they trip over: struct.error and TypeError were seen too
        raise BadImage(
            f"{name} cannot be read as a picture ({error}). Give a whole file of one of: {', '.join(_FORMATS)}."
        ) from error


def bytes_of(source: str | Path, limits: Limits) -> tuple[bytes, str]:
    """Return the file's bytes, at most one more than the limit, and what to call it in an error."""
    if isinstance(source, str) and source.startswith("data:"):
        header, _, body = source.partition(",")
        if not header.endswith(";base64"):
            raise BadImage(f"The data URI begins with {header[:40]!r}; it must begin with data:image/...;base64, .")
        if len(body) * 3 // 4 > limits.max_bytes + 2:
            raise BadImage(f"The picture has more than {limits.max_bytes} bytes, which is the most that is read.")
        try:
            return base64.b64decode(body, validate=True), "The picture"
        except (binascii.Error, ValueError) as error:
            raise BadImage(f"The data URI is not base64 ({error}). Encode the picture's file again.") from error
    if not limits.paths:
        raise BadImage("The picture is not a data URI. Send it as data:image/png;base64,...: files are not read here.")
    path = Path(source)
    try:
        with path.open("rb") as file:
            return file.read(limits.max_bytes + 1), str(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadImage(f"{str(path)[:200]!r} cannot be opened ({reason}). Give a file's path or a data URI.") from error


def _channels(image: Image.Image, name: str) -> Picture:
    """Return the pixels in 8 bits, (h w 3) or, where something is transparent, (h w 4)."""
    if image.mode in _DEEP:
        return to_picture(_from_16_bits(np.asarray(image), name))
    if image.mode == "F":
        raise BadImage(f"{name} holds floating-point numbers without a known white. Save it with 8 or 16 bits.")
    transparent = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    return np.array(image.convert("RGBA" if transparent else "RGB"), np.uint8)


def _from_16_bits(x: NDArray[np.generic], name: str) -> NDArray[np.int64]:
    """Return 0..65535 as 0..255, rounded, (h w)."""
    deep = x.astype(np.int64)
    if deep.min() < 0 or deep.max() > 65535:
        raise BadImage(f"{name} has grey values from {deep.min()} to {deep.max()}. Save it with 8 or 16 bits.")
    return (deep + 128) // 257


def to_rgb(image: Picture) -> Picture:
    """Return grey (h w), RGB or RGBA (h w c) as RGB (h w 3), on white where it is transparent (ControlNet's HWC3)."""
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)) or not image.size:
        raise BadImage(f"A picture was given as {image.shape}; it must be (height, width) with 1, 3 or 4 channels.")
    if image.ndim == 2 or image.shape[2] != 4:
        return to_picture(image)
    alpha = image[:, :, 3:].astype(np.float32) / 255
    return to_picture(image[:, :, :3].astype(np.float32) * alpha + 255 * (1 - alpha))


def pixel_perfect_resolution(image: Picture, width: int, height: int, mode: ResizeMode) -> int:
    """Return the resolution at which an annotation of `image` (h w 3) meets the canvas's pixels one to one."""
    old_height, old_width = image.shape[:2]
    ratios = width / old_width, height / old_height
    return max(1, round((min(ratios) if mode == "fill" else max(ratios)) * min(old_height, old_width)))


def fit(image: Picture, width: int, height: int, mode: ResizeMode = "crop") -> Picture:
    """Return the map (h w c) on a canvas of width x height; c: 3, or 4 where the last is a mask. Raises BadImage.

    stretch: both sides as they must be; crop: covers the canvas, the middle is kept; fill: lies within it, on the
    median colour of its border, in the mask 255. Labels stay labels and lines stay thin (`maps.resize_map`).
    """
    if mode == "stretch":
        return resize_map(image, width, height)
    old_height, old_width = image.shape[:2]
    ratios = width / old_width, height / old_height
    k = min(ratios) if mode == "fill" else max(ratios)
    resized = resize_map(image, max(1, round(old_width * k)), max(1, round(old_height * k)))
    if mode == "crop":
        top, left = max(0, (resized.shape[0] - height) // 2), max(0, (resized.shape[1] - width) // 2)
        return np.ascontiguousarray(resized[top : top + height, left : left + width])
    canvas = np.tile(_border_colour(image), (height, width, 1))
    top, left = max(0, (height - resized.shape[0]) // 2), max(0, (width - resized.shape[1]) // 2)
    canvas[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
    return canvas


def _border_colour(image: Picture) -> Picture:
    """Return the median colour of the four borders, (c,); the corners count twice, and a mask's is 255."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    colour = np.median(border, axis=0).astype(np.uint8)
    colour[3:] = 255
    return colour


def resize_image(image: Picture, resolution: int) -> Picture:
    """Return the picture (h w 3) with its short side at `resolution`, each side rounded to 64 (ControlNet, CtrLoRA)."""
    height, width = image.shape[:2]
    k = resolution / min(height, width)
    size = max(64, round(width * k / 64) * 64), max(64, round(height * k / 64) * 64)
    check_pixels(*size)
    return to_picture(cv2.resize(image, size, interpolation=cv2.INTER_LANCZOS4 if k > 1 else cv2.INTER_AREA))
