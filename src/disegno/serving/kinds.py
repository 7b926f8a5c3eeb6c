"""The kinds of jobs, as a table: what each is asked with, what it may cost, who carries it out, what it can share.

A new kind is one row here and one function of a worker; every door that lists kinds, and the OpenAPI document, follow.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from disegno.core.errors import UnknownName
from disegno.core.request import Request, ResizeMode, Scalar
from disegno.serving.faults import Refused, refusal_of_fields
from disegno.serving.settings import Limits

_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)
_NO_NAME = re.compile(r"^[/~]|^[A-Za-z]:|\\|\0|(^|/)\.\.(/|$)")
DATA_URI = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,")


@checked_dataclass(frozen=True, kw_only=True, config=_CONFIG)
class AnnotateRequest:
    """One drawing made from one picture."""

    name: str
    """The annotator."""
    image: str
    """The picture, a data URI."""
    params: dict[str, Scalar] = field(default_factory=dict[str, Scalar])
    """The annotator's parameters, by name."""
    resolution: Annotated[int | None, Field(ge=64, le=4096)] = None
    """The short side of what the annotator sees, in pixels; unset: the picture's own."""
    width: Annotated[int | None, Field(ge=64, le=4096)] = None
    """With `height`: fit the drawing to a canvas of this size."""
    height: Annotated[int | None, Field(ge=64, le=4096)] = None
    """With `width`: fit the drawing to a canvas of this size."""
    resize: ResizeMode = "crop"
    """How it is fitted."""


@dataclass(frozen=True)
class JobKind:
    """One kind. `runner`: "module:function", imported in the worker; `share`: what jobs that are stepped together have
    in common, None for a kind that runs alone."""

    name: str
    request: type[Any]
    runner: str
    check: Callable[[Any, Limits], None]
    share: Callable[[Any], str | None] = lambda request: None
    resumes: bool = False

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """What reads and writes the request."""
        return TypeAdapter(self.request)

    def read(self, fields: object) -> Any:
        """Return the request of these fields. Raises Refused, naming the field that is wrong."""
        try:
            return self.adapter.validate_python(fields)
        except ValidationError as error:
            raise refusal_of_fields(error) from error

    def dump(self, request: Any) -> bytes:
        """Return the request as JSON."""
        return self.adapter.dump_json(request)

    def load(self, body: str | bytes) -> Any:
        """Return the request that `dump` wrote."""
        return self.adapter.validate_json(body)


# ---- what a request may cost


def _refuse(at: str, given: object, most: object, what: str) -> Refused:
    return Refused(422, "over_limit", f"{at} is {given}; this server takes at most {most} {what}.", at, "Ask for less.")


def _texts(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of a request, keys too, with where it stands."""
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield at, str(key)
            yield from _texts(item, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _texts(item, f"{at}.{i}")


def check_texts(fields: Any, limits: Limits) -> None:
    """Refuse texts that are too long, and pictures that are too large, that are not whole, or that are too many."""
    num_pictures = 0
    for at, text in _texts(fields):
        if text.startswith("data:"):
            num_pictures += 1
            check_picture(text, at, limits)
        elif len(text) > limits.text_chars:
            raise _refuse(at[:200], f"{len(text)} characters long", limits.text_chars, "characters")
    if num_pictures > limits.pictures:
        raise _refuse("request", f"{num_pictures} pictures", limits.pictures, "pictures")


def check_picture(uri: str, at: str, limits: Limits) -> None:
    """Refuse a picture by its length and its header; its content is read by the worker."""
    import base64
    import binascii

    from PIL import Image

    if not DATA_URI.match(uri):
        raise Refused(422, "bad_image", f"{at} must begin with data:image/png;base64, or the like.", at)
    if (len(uri) * 3) // 4 > limits.picture_bytes:
        raise _refuse(at, f"a picture of {len(uri) * 3 // 4} bytes", limits.picture_bytes, "bytes")
    try:
        data = base64.b64decode(uri[uri.index(",") + 1 :], validate=True)
        with Image.open(BytesIO(data), formats=("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")) as image:
            width, height = image.size
    except (binascii.Error, ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused(
            422, "bad_image", f"{at} cannot be read as a picture.", at, "Send the whole file of a PNG, JPEG or WebP."
        ) from error
    if width * height > limits.picture_pixels:
        raise _refuse(at, f"{width} x {height} pixels", limits.picture_pixels, "pixels")


def check_names(names: Iterator[tuple[str, str | None]]) -> None:
    """Refuse names that are paths: a server's files are named by the library's names only."""
    for at, name in names:
        if name is not None and _NO_NAME.search(name):
            raise Refused(422, "unknown_name", f"{at} must be a name, not a path.", at, "GET /v1/models lists them.")


def check_generate(request: Request, limits: Limits) -> None:
    """Refuse a generation that costs more than the server gives, or that names files of the machine."""
    width, height, steps = request.width or 64, request.height or 64, request.steps or 1
    pixels = width * height * request.batch
    bounds = (
        ("width", width, limits.side_px, "pixels a side"),
        ("height", height, limits.side_px, "pixels a side"),
        ("batch", request.batch, limits.batch, "pictures"),
        ("steps", steps, limits.steps, "steps"),
        ("width x height x batch", pixels, limits.pixels, "pixels"),
        ("width x height x batch x steps", pixels * steps, limits.work, "pixels in all steps"),
        ("prompt", len(request.prompt), limits.prompt_chars, "characters"),
        ("negative", len(request.negative), limits.prompt_chars, "characters"),
        ("controls", len(request.controls), limits.controls, "controls"),
    )
    for at, given, most, what in bounds:
        if given > most:
            raise _refuse(at, given, most, what)
    check_names(
        pair
        for i, unit in enumerate(request.controls)
        for pair in ((f"controls.{i}.name", unit.name), (f"controls.{i}.base", unit.base))
    )
    check_names(iter([("model", request.model)]))
    check_texts(json.loads(TypeAdapter(Request).dump_json(request)), limits)


def check_annotate(request: AnnotateRequest, limits: Limits) -> None:
    """Refuse what is no picture, or too large a one."""
    check_texts(json.loads(TypeAdapter(AnnotateRequest).dump_json(request)), limits)
    if (request.width or 0) > limits.side_px or (request.height or 0) > limits.side_px:
        raise _refuse("width", max(request.width or 0, request.height or 0), limits.side_px, "pixels a side")


KINDS: dict[str, JobKind] = {
    kind.name: kind
    for kind in (
        JobKind("generate", Request, "disegno.serving.runners:generate", check_generate, lambda asked: asked.model),
        JobKind("annotate", AnnotateRequest, "disegno.serving.runners:annotate", check_annotate),
    )
}


def kind_of(name: str) -> JobKind:
    """Return the kind of this name. Raises UnknownName."""
    if name not in KINDS:
        raise UnknownName.of("kind of job", name, KINDS)
    return KINDS[name]
