"""A result's pictures as files: PNG with the whole request in it, JPEG and WebP with A1111's parameters."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from disegno.core.errors import RequestError
from disegno.core.files import make_folder, write_atomically
from disegno.core.result import Result
from disegno.engine.embedded import exif_of, parameters_of, require_room
from disegno.engine.record import png_bytes

FORMATS: Mapping[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95}),
}


def require_format(path: Path) -> None:
    """Raise RequestError where a file's ending names no format that pictures are written in."""
    if path.suffix.lower() not in FORMATS:
        raise RequestError(
            f"{path} ends with {path.suffix!r}; pictures are written as {', '.join(FORMATS)}."
            " Choose one of these, or a folder that exists."
        )


def write_picture(path: Path, result: Result, image: int) -> None:
    """Write image number `image` of the result, with how it was made, whole or not at all.

    Raises ResourceError, RequestError.
    """
    require_format(path)
    kind, options = FORMATS[path.suffix.lower()]
    if kind == "PNG":
        return _write(path, png_bytes(result, image))
    exif = exif_of(parameters_of(result, image))
    if kind == "JPEG":
        require_room(exif)
    return _write(path, _encoded(result.images[image], kind, options | {"exif": exif}))


def write_plain(path: Path, picture: Image.Image) -> None:
    """Write a picture without a word, whole or not at all. Raises ResourceError, RequestError."""
    require_format(path)
    kind, options = FORMATS[path.suffix.lower()]
    _write(path, _encoded(picture, kind, options))


def _encoded(picture: Image.Image, kind: str, options: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    try:
        picture.save(buffer, format=kind, **options)
    except (OSError, ValueError) as error:  # WebP ends at 16,383 pixels, JPEG at 65,535
        size = f"{picture.width} x {picture.height}"
        raise RequestError(
            f"A {kind} file cannot hold this picture of {size} pixels ({error}). Choose .png."
        ) from error
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    make_folder(path.parent)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
