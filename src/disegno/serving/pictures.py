"""Pictures on their way to a client: PNG as a file, a small JPEG as a data URI."""

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image

MAX_PIXELS = 16_000_000  # of a file's preview


def png(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def preview_uri(file: Path | BytesIO, most_px: int) -> str | None:
    """Return a small JPEG of a stranger's picture as a data URI; None where it cannot be read, or is huge."""
    try:
        with Image.open(file) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                return None
            return jpeg_uri(opened.convert("RGB"), most_px)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # SyntaxError: Pillow's, of a broken PNG
        return None


def jpeg_uri(picture: Image.Image | Path, most_px: int) -> str:
    """Return a JPEG of a picture, or of a picture's file, as a data URI, at most so many pixels wide and high."""
    if isinstance(picture, Path):
        with Image.open(picture) as opened:
            return jpeg_uri(opened.convert("RGB"), most_px)
    small, buffer = picture.copy(), BytesIO()
    small.thumbnail((most_px, most_px))
    small.save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
