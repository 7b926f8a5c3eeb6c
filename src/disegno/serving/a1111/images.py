"""Pictures as A1111's clients send them: base64, with or without a data URI's beginning, on one line or many.

A server reads no files for a client. A picture by address is passed on: `jobs.submit` says whether its host is allowed.
"""

import base64
import binascii
import re

from disegno.serving.a1111.coerce import Json
from disegno.serving.a1111.errors import Fault, Path, WireError

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"RIFF", "webp"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
)
_FORMATS = "PNG, JPEG, WebP, GIF, BMP or TIFF"
_BLANK = re.compile(r"\s+")
_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]{1,15}):/", re.IGNORECASE)
_NO_BASE64 = re.compile(r"[!-*,\-.:-@\[-`{-~]{3,}")  # printable, and not one character of base64's alphabet


def read_image(text: Json, path: Path) -> str | None:
    """Return a client's picture as a data URI, or its address on the web; None for null and empty text.

    Raises WireError saying what is wrong.
    """
    if text is None or text == "":
        return None
    if not isinstance(text, str):
        raise WireError.of_fields(Fault(path, "a picture is text: base64 of a picture's file", "type_error.str"))
    if (scheme := _SCHEME.match(text)) is not None:
        if scheme[1].lower() not in ("http", "https"):
            raise _invalid(path, f"{scheme[1][:16]}: is no address of a picture. Send the picture as base64")
        return text.strip()
    data = _decoded(_body(text, path), path)
    kind = next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)
    if kind is None:
        raise _invalid(path, f"what it encodes is no picture file. Send a {_FORMATS} file as base64")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _body(text: str, path: Path) -> str:
    """Return the base64 of a picture's text."""
    if text.lstrip()[:5].lower() == "data:":
        header, comma, body = text.partition(",")
        if not comma or not header.rstrip().lower().endswith(";base64"):
            raise _invalid(path, "a data URI begins with data:image/png;base64,")
        return body
    if _NO_BASE64.fullmatch(text):
        raise WireError("Invalid encoded image", 500)  # A1111 parity: its answer, which its clients' checks know
    return text


def _decoded(body: str, path: Path) -> bytes:
    packed = _BLANK.sub("", body).rstrip("=")
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):  # ValueError: a character outside ASCII
        raise _invalid(path, "it is not base64. Send a picture's file as base64") from None


def _invalid(path: Path, message: str) -> WireError:
    return WireError.of_fields(Fault(path, f"Invalid encoded image: {message}"))


def encode(data: bytes) -> str:
    """Return bytes as A1111's answers hold pictures: base64, without a data URI's beginning."""
    return base64.b64encode(data).decode()
