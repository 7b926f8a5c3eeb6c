"""`/v1/images`: the form of OpenAI's images API, so that its clients draw here. A thin translation; what it cannot say
(seed, steps, cfg, negative, sampler, controls ...) may stand beside it, by the names of this program's own requests.
"""

import asyncio
import base64
import json
import time
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response
from PIL import Image, ImageChops
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from disegno.core.request import Request as Generation
from disegno.serving.app import Door, finished, jobs_of
from disegno.serving.faults import Refused, documented
from disegno.serving.guard import owner_of
from disegno.serving.kinds import kind_of
from disegno.serving.settings import ServerSettings
from disegno.serving.store import Job

Format = Literal["png", "jpeg", "webp"]
MEDIA = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
PASSED_OVER = ("background", "moderation", "quality", "style", "user", "safety_identifier", "partial_images")
DENOISE_ALL, DENOISE_MASKED = 0.75, 1.0  # without a mask the picture stays recognisable; what is masked is drawn anew
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ErrorBody(BaseModel):
    """Why a request was not carried out, as OpenAI says it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """What is answered then."""

    error: ErrorBody


router = APIRouter(prefix="/v1/images", tags=["images"], responses=documented(ErrorAnswer))


class Shape(BaseModel):
    """What both requests may say about the answer."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    n: Annotated[int | None, Field(ge=1, le=64)] = None
    """How many pictures."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels, or auto."""
    response_format: Literal["url", "b64_json"] | None = None
    """How the pictures come: within the answer, or as addresses on this server."""
    output_format: Format | None = None
    """The pictures' format; a PNG remembers how it was made."""
    output_compression: Annotated[int | None, Field(ge=0, le=100)] = None
    """The quality of JPEG and WebP."""


class GenerationBody(Shape):
    """A picture from a sentence, in OpenAI's form. Other fields are those of this program's own request."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="allow")

    prompt: str
    """What to draw."""
    model: str | None = None
    """A name from /v1/models; unset: the built-in model."""
    stream: bool | None = None
    """Answers come whole; true is refused."""


class ImageAnswer(BaseModel):
    """One picture."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class ImagesAnswer(BaseModel):
    """The pictures, and what was passed over."""

    created: int
    data: list[ImageAnswer]
    output_format: Format
    size: str
    background: Literal["opaque"] = "opaque"
    warnings: list[str]
    seeds: list[str]


def _number(n: int | None) -> dict[str, int]:
    """Return how many pictures OpenAI's field asks for; nothing where it is not given."""
    return {} if n is None else {"batch": n}


def parse_size(size: str | None) -> dict[str, int]:
    """Return width and height from WIDTHxHEIGHT; nothing for auto. Raises Refused."""
    if size is None or size == "auto":
        return {}
    width, x, height = size.partition("x")
    if not (x and width.isdecimal() and height.isdecimal() and len(size) <= 11):
        raise Refused(422, "invalid_request", "size must be WIDTHxHEIGHT, as 512x512, or auto.", "size")
    return {"width": int(width), "height": int(height)}


def generation_of(body: GenerationBody) -> tuple[Generation, list[str]]:
    """Return the request, and what was passed over. Raises Refused naming the field that is wrong."""
    if body.stream:
        raise Refused(422, "unsupported", "Streaming is not offered here; see /v1/jobs/ID/events.", "stream")
    extra = dict(body.model_extra or {})
    ignored = [name for name in PASSED_OVER if extra.pop(name, None) is not None]
    fields = extra | parse_size(body.size) | {"prompt": body.prompt} | _number(body.n)
    if body.model is not None:
        fields["model"] = body.model
    return kind_of("generate").read(fields), [f"{name} was passed over." for name in ignored]


@router.post("/generations")
async def generations(body: GenerationBody, request: Request) -> ImagesAnswer:
    """Draw pictures from a sentence."""
    asked, ignored = generation_of(body)
    return await _drawn(request, asked, body, ignored)


async def _drawn(request: Request, asked: Generation, shape: Shape, ignored: list[str]) -> ImagesAnswer:
    jobs, owner = jobs_of(request), owner_of(request)
    key = request.headers.get("idempotency-key")
    job = await jobs.submit("generate", asked, owner=owner, key=f"openai:{key[:200]}" if key else None)
    return await _answer(request, await finished(request, job), shape, ignored)


async def _answer(request: Request, job: Job, shape: Shape, ignored: list[str]) -> ImagesAnswer:
    assert job.outcome is not None
    jobs, by_address = jobs_of(request), shape.response_format == "url"
    kind: Format = "png" if by_address else shape.output_format or "png"
    names = [file.name for file in job.outcome.files if file.role == "image"]
    if by_address:
        base = f"{request.url.scheme}://{request.headers['host']}"
        data = [ImageAnswer(url=f"{base}/v1/jobs/{job.id}/files/{name}") for name in names]
    else:
        paths = [jobs.path(job, name) for name in names]
        encoded = await asyncio.to_thread(_encoded, paths, kind, shape.output_compression)
        data = [ImageAnswer(b64_json=text) for text in encoded]
    facts: dict[str, Any] = job.outcome.facts
    size = f"{facts['request']['width']}x{facts['request']['height']}"
    warnings = [*ignored, *_unsaid(shape), *job.outcome.warnings]
    return ImagesAnswer(
        created=int(job.created or time.time()), data=data, output_format=kind, size=size, warnings=warnings,
        seeds=facts["seeds"],
    )  # fmt: skip


def _unsaid(shape: Shape) -> list[str]:
    """Return what of the answer's shape was passed over: what lies at an address is the PNG with its record."""
    if shape.response_format != "url" or shape.output_format in (None, "png"):
        return []
    return [
        f"output_format was passed over: by address a picture is a PNG; ask for b64_json to have {shape.output_format}."
    ]


def _encoded(paths: list[Path], kind: Format, quality: int | None) -> list[str]:
    """Return each file in base64; PNG as it is, with its record."""
    if kind == "png":
        return [base64.b64encode(path.read_bytes()).decode() for path in paths]
    texts: list[str] = []
    for path in paths:
        buffer = BytesIO()
        with Image.open(path) as picture:
            picture.convert("RGB").save(buffer, format=kind.upper(), quality=90 if quality is None else quality)
        texts.append(base64.b64encode(buffer.getvalue()).decode())
    return texts


# ---- edits


@router.post("/edits")
async def edits(
    request: Request,
    prompt: Annotated[str, Form()],
    image: Annotated[list[UploadFile] | None, File()] = None,
    images: Annotated[list[UploadFile] | None, File(alias="image[]")] = None,
    mask: Annotated[UploadFile | None, File()] = None,
    model: Annotated[str | None, Form()] = None,
    n: Annotated[int | None, Form(ge=1, le=64)] = None,
    size: Annotated[str | None, Form()] = None,
    response_format: Annotated[Literal["url", "b64_json"] | None, Form()] = None,
    output_format: Annotated[Format | None, Form()] = None,
    output_compression: Annotated[int | None, Form(ge=0, le=100)] = None,
    strength: Annotated[float | None, Form(ge=0.0, le=1.0)] = None,
    extra: Annotated[str | None, Form(description="JSON: other fields of this program's own request.")] = None,
) -> ImagesAnswer:
    """Change a picture: all of it, or what is transparent in the mask (or in the picture itself)."""
    given = [*(image or ()), *(images or ())]
    if len(given) != 1:
        raise Refused(422, "invalid_request", f"{len(given)} pictures were sent; one is wanted.", "image")
    uri = await _uri(given[0])
    hole = await asyncio.to_thread(mask_of, uri, await _uri(mask) if mask else None, jobs_of(request).settings)
    fields: dict[str, Any] = {"model": model} if model else {}
    fields |= _extra(extra) | parse_size(size) | {"prompt": prompt} | _number(n)
    fields["init"] = init_of(uri, hole, strength, fields.get("init"))
    asked: Generation = kind_of("generate").read(fields)
    shape = Shape(
        n=n, size=size, response_format=response_format, output_format=output_format,
        output_compression=output_compression,
    )  # fmt: skip
    return await _drawn(request, asked, shape, [])


def init_of(image: str, hole: str | None, strength: float | None, own: JsonValue) -> dict[str, Any]:
    """Return what becomes of a picture. `own`: what `extra` says of it, beside what the form's fields do."""
    if not isinstance(own, dict | None):
        raise Refused(422, "invalid_request", "init must be a JSON object.", "extra")
    usual = {"denoise": DENOISE_MASKED if hole else DENOISE_ALL, "mask": hole, "fill": "fill" if hole else None}
    return {**usual, **(own or {}), "image": image, **({} if strength is None else {"denoise": strength})}


def _extra(text: str | None) -> dict[str, JsonValue]:
    try:
        fields = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise Refused(422, "invalid_request", "extra is not JSON.", "extra") from error
    if not isinstance(fields, dict):
        raise Refused(422, "invalid_request", "extra must be a JSON object.", "extra")
    return fields


async def _uri(file: UploadFile) -> str:
    """Return an uploaded picture as a data URI; its name and its claimed type are not believed."""
    return f"data:image/png;base64,{base64.b64encode(await file.read()).decode()}"


def mask_of(image: str, mask: str | None, settings: ServerSettings) -> str | None:
    """Return what is transparent in the mask, or else in the picture, as a white mask on black; None: nothing is."""
    from disegno.core.errors import BadImage
    from disegno.engine.pictures import Limits, read_channels

    try:
        most = settings.limits
        channels = read_channels(mask or image, Limits(most.picture_bytes, most.picture_pixels, paths=False))
    except BadImage as error:
        at = "mask" if mask else "image"
        raise Refused(422, "bad_image", str(error)[:300], at) from error
    if channels.shape[2] < 4:
        if mask is None:
            return None
        raise Refused(422, "bad_image", "The mask has no transparency: what is transparent is drawn anew.", "mask")
    hole = ImageChops.invert(Image.fromarray(channels[:, :, 3]))
    if hole.getextrema() == (0, 0):
        return None
    buffer = BytesIO()
    hole.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def render(refused: Refused) -> Response:
    """Return the error in OpenAI's shape."""
    kind = _TYPES.get(refused.status, "server_error" if refused.status >= 500 else "invalid_request_error")
    told = {"message": refused.message, "type": kind, "param": refused.at, "code": refused.code}
    status = 400 if refused.status == 422 else refused.status
    return JSONResponse({"error": told}, status, dict(refused.headers))


DOOR = Door(router, ("/v1/images",), render)
