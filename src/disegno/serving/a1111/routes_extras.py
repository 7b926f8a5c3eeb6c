"""Pictures made larger, what a picture says about itself, and what it shows."""

import asyncio
import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request
from PIL import Image
from starlette.responses import JSONResponse, Response

from disegno.core.infotext import read_infotext
from disegno.engine.embedded import PILLOW_TRIPS, text_in
from disegno.serving.a1111.coerce import Json
from disegno.serving.a1111.errands import Errand, ended_early
from disegno.serving.a1111.errors import WireError
from disegno.serving.a1111.extras import Extras, html_info, translate_extras
from disegno.serving.a1111.files import png_with_text
from disegno.serving.a1111.front import Front, TimedRoute, asker, body_of, upscaler_names
from disegno.serving.a1111.images import encode, read_image
from disegno.serving.app import require_done
from disegno.serving.bounds import check_picture
from disegno.serving.faults import Refused
from disegno.serving.kinds import CaptionRequest, UpscaleRequest

router = APIRouter(route_class=TimedRoute, include_in_schema=False)
POSTPROCESSING = "postprocessing"
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


@dataclass(frozen=True)
class Looked:
    """A picture's size as it stands when its EXIF has turned it, how it was made, and all texts in it."""

    size: tuple[int, int]
    text: str | None
    texts: Mapping[str, str]


@router.post("/sdapi/v1/extra-single-image")
async def extra_single_image(request: Request) -> Response:
    """Make a picture larger."""
    told, drawn = await _enlarge(request, many=False)
    return JSONResponse({"html_info": told, "image": encode(drawn[0])})


@router.post("/sdapi/v1/extra-batch-images")
async def extra_batch_images(request: Request) -> Response:
    """Make several pictures larger."""
    told, drawn = await _enlarge(request, many=True)
    images: list[Json] = [encode(png) for png in drawn]
    return JSONResponse({"html_info": told, "images": images})


async def _enlarge(request: Request, many: bool) -> tuple[str, list[bytes]]:
    """Return what is said of the pictures and the pictures; where it could not go on, those that are made till then."""
    front, owner = asker(request)
    names = upscaler_names(await front.catalogue(), latent=False)
    asked = translate_extras(await body_of(request), many, names)
    errand = front.errands.begin(owner, "extras", len(asked.images))
    drawn: list[bytes] = []
    told = [asked.how.text, *asked.warnings]
    try:
        for image in asked.images:
            uri = await picture_at(front, image)
            one = await asyncio.to_thread(_job_of, front, asked, uri)
            job = await front.errands.run_job(errand, "upscale", one, request.is_disconnected)
            if job is None:
                break
            drawn.append(await asyncio.to_thread(_written, front, require_done(job).id, asked, uri))
    except Refused as refused:
        told.append(ended_early(refused, len(drawn), len(asked.images), "enlarged"))
    finally:
        front.errands.end(errand)
    if not drawn:
        raise Refused(409, "cancelled", "The job was cancelled.")
    return html_info(told), drawn


async def picture_at(front: Front, image: str) -> str:
    """Return a picture as a data URI; one that is given by address is fetched where that is allowed. Raises Refused."""
    return str((await front.jobs.fetched({"image": image}))["image"])


@router.post("/sdapi/v1/interrogate")
async def interrogate(request: Request) -> Response:
    """Say what a picture shows, by the library's captioner (BLIP) and without A1111's list of artists behind it."""
    front, owner = asker(request)
    given = await body_of(request)
    image = read_image(given.get("image"), ("image",))
    if image is None:
        raise WireError("Image not found", 404)
    if given.get("model", "clip") != "clip":
        raise WireError("Model not found", 404)
    await require_captioner(front)
    errand = front.errands.begin(owner, "interrogate", 1)
    try:
        words = await caption_of(front, errand, await picture_at(front, image), request)
    finally:
        front.errands.end(errand)
    return JSONResponse({"caption": words})


async def require_captioner(front: Front) -> None:
    """Raise WireError where nothing here says what pictures show."""
    if not any(card.kind == "captioner" for card in (await front.catalogue()).files):
        raise WireError("Model not found: there is no captioner (the folder of a BLIP) in the model folders", 404)


async def caption_of(front: Front, errand: Errand, uri: str, request: Request) -> str:
    """Return what a picture shows; "" where the errand was interrupted. Raises Refused."""
    job = await front.errands.run_job(errand, "caption", CaptionRequest(image=uri), request.is_disconnected)
    outcome = None if job is None else require_done(job).outcome
    return "" if outcome is None else str(outcome.facts["caption"])


def _look(front: Front, uri: str) -> Looked:
    """Return a picture's size and what it says, the whole file read. Raises Refused."""
    from disegno.engine.pictures import size_of

    check_picture(uri, "image", front.jobs.settings.limits)
    data = base64.b64decode(uri.partition(",")[2])
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            picture.load()
            texts = {str(name): value for name, value in picture.info.items() if isinstance(value, str)}
            return Looked(size_of(data, "image"), text_in(picture), texts)
    except PILLOW_TRIPS as error:
        raise WireError("Invalid encoded image: it cannot be read as a picture. Send the whole file.") from error


def _job_of(front: Front, asked: Extras, uri: str) -> UpscaleRequest:
    (width, height), cut = asked.how.target(*_look(front, uri).size)
    return UpscaleRequest(
        image=uri,
        width=width,
        height=height,
        upscaler=asked.how.upscaler,
        second=asked.how.second,
        weight=asked.how.weight,
        cut_width=cut[0] if cut else None,
        cut_height=cut[1] if cut else None,
    )


def _written(front: Front, job_id: str, asked: Extras, uri: str) -> bytes:
    """Return the enlarged picture with what the first one said, and what was done since."""
    png = (front.jobs.files.result(job_id) / "upscaled.png").read_bytes()
    text = _look(front, uri).text
    kept = png_with_text(png, text) if text else png
    return png_with_text(kept, asked.how.text, POSTPROCESSING)


@router.post("/sdapi/v1/png-info")
async def png_info(request: Request) -> Response:
    """How a picture was made, from the text in it."""
    front, _ = asker(request)
    image = read_image((await body_of(request)).get("image"), ("image",))
    if image is None:
        raise WireError("Image not found: send base64 of a picture's file.")
    looked = await asyncio.to_thread(_look, front, await picture_at(front, image))
    text = looked.text or ""
    items: dict[str, Json] = {name: value for name, value in looked.texts.items() if name != "parameters"}
    parameters: dict[str, Json] = dict(read_infotext(text)) if text else {}
    return JSONResponse({"info": text, "items": items, "parameters": parameters})
