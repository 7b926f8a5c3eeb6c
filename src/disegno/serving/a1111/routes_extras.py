"""What a picture says about itself."""

import asyncio
import base64
import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request
from PIL import Image
from starlette.responses import JSONResponse, Response

from disegno.serving.a1111.coerce import Json
from disegno.serving.a1111.errors import WireError
from disegno.serving.a1111.front import Front, TimedRoute, asker, body_of
from disegno.serving.a1111.images import read_image
from disegno.serving.a1111.infotext import parameters_of, text_of
from disegno.serving.bounds import check_picture

router = APIRouter(route_class=TimedRoute, include_in_schema=False)
POSTPROCESSING = "postprocessing"
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
PILLOW_TRIPS = (OSError, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, EOFError, struct.error)
"""What Pillow's parsers raise on damaged files."""


@dataclass(frozen=True)
class Looked:
    """A picture's size, how it was made, and all texts in it."""

    size: tuple[int, int]
    text: str | None
    texts: Mapping[str, str]


def _look(front: Front, uri: str) -> Looked:
    """Return a picture's size and what it says, the whole file read. Raises Refused."""
    check_picture(uri, "image", front.jobs.settings.limits)
    try:
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])), formats=FORMATS) as picture:
            picture.load()
            texts = {str(name): value for name, value in picture.info.items() if isinstance(value, str)}
            return Looked(picture.size, text_of(picture), texts)
    except PILLOW_TRIPS as error:
        raise WireError("Invalid encoded image: it cannot be read as a picture. Send the whole file.") from error


@router.post("/sdapi/v1/png-info")
async def png_info(request: Request) -> Response:
    """How a picture was made, from the text in it."""
    uri = read_image((await body_of(request)).get("image"), ("image",))
    if uri is None:
        raise WireError("Image not found: send base64 of a picture's file.")
    looked = await asyncio.to_thread(_look, asker(request)[0], uri)
    text = looked.text or ""
    items: dict[str, Json] = {name: value for name, value in looked.texts.items() if name != "parameters"}
    parameters: dict[str, Json] = dict(parameters_of(text)) if text else {}
    return JSONResponse({"info": text, "items": items, "parameters": parameters})
