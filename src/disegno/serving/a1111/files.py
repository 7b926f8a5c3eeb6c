"""A picture's file in the format that a client set, with the text that says how it was made.

A PNG keeps the bytes of its pixels: the text is put in as a chunk. JPEG and WebP carry it as EXIF UserComment, as A1111
writes it.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress

from PIL import Image

from disegno.core.errors import RequestError
from disegno.engine.embedded import KEY as PARAMETERS
from disegno.engine.embedded import exif_of, require_room
from disegno.engine.record import PICTURE_CHUNK

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXT_CHUNKS = (b"tEXt", b"iTXt", b"zTXt", PICTURE_CHUNK)  # the last: pictures that the record in the text names


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    while at + 8 <= len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += 12 + length


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _text_chunk(key: str, text: str) -> bytes:
    # A1111 parity: Latin text is tEXt, any other iTXt
    try:
        return _chunk(b"tEXt", key.encode("latin-1") + b"\0" + text.encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + text.encode("utf-8", "replace"))


def png_with_text(png: bytes, text: str | None, key: str = PARAMETERS) -> bytes:
    """Return a PNG file with a text under `key`, instead of the one that it had; None: without. Pixels stay."""
    out = [SIGNATURE]
    for kind, data in _chunks(png):
        if kind in _TEXT_CHUNKS and data.partition(b"\0")[0] == key.encode():
            continue
        out.append(_chunk(kind, data))
        if kind == b"IHDR" and text is not None:
            out.append(_text_chunk(key, text.replace("\0", "")))
    return b"".join(out)


def png_without_texts(png: bytes) -> bytes:
    """Return a PNG file without any text."""
    kept = (_chunk(kind, data) for kind, data in _chunks(png) if kind not in _TEXT_CHUNKS)
    return SIGNATURE + b"".join(kept)


def png_of(picture: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file, without texts."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def open_png(png: bytes) -> Image.Image:
    """Return the picture of a PNG file that this program made."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        picture.load()
        return picture.copy()


def as_format(png: bytes, text: str | None, image_format: str, quality: int = 80, lossless: bool = False) -> bytes:
    """Return a PNG's picture as a file of the format (png, jpg, jpeg, webp), with `text`; None: with no text.

    What the format cannot hold, by its size or by its text, stays a PNG.
    """
    exif = Image.Exif() if text is None else exif_of(text)
    buffer = io.BytesIO()
    with suppress(RequestError, OSError, ValueError):  # WebP ends at 16,383 pixels, JPEG at 65,535
        if image_format == "webp":
            _as_rgb(png).save(buffer, format="WEBP", quality=quality, lossless=lossless, exif=exif)
            return buffer.getvalue()
        if image_format != "png":
            require_room(exif)
            _as_rgb(png).save(buffer, format="JPEG", quality=quality, exif=exif)
            return buffer.getvalue()
    return png_with_text(png, text) if text is not None else png_without_texts(png)


def _as_rgb(png: bytes) -> Image.Image:
    return open_png(png).convert("RGB")
