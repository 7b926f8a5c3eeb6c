"""What one request may cost, and what it may not name. Everything here is decided from the request alone; no torch."""

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from typing import Any, cast

from disegno.core.errors import BadImage
from disegno.core.hires import target_size
from disegno.core.request import Request
from disegno.serving.faults import Refused
from disegno.serving.fetch import PICTURE_KEYS, is_url
from disegno.serving.settings import Limits

_NO_NAME = re.compile(r"^[/~]|^[A-Za-z]:|\\|\0|(^|/)\.\.(/|$)")
_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,")
_LORA = re.compile(r"<\s*(?:lora|lyco|hypernet)\s*:", re.IGNORECASE)


def _over(at: str, given: object, most: object, what: str) -> Refused:
    return Refused(422, "over_limit", f"{at} is {given}; this server takes at most {most} {what}.", at, "Ask for less.")


def require_within(bounds: Iterable[tuple[str, int, int, str]]) -> None:
    """Refuse the first of (field, given, most, unit) that is over its bound."""
    for at, given, most, what in bounds:
        if given > most:
            raise _over(at, given, most, what)


def require_pair(at: str, given: int | None, other_at: str, other: int | None) -> None:
    """Refuse one of two sides without the other. Raises Refused."""
    if (given is None) != (other is None):
        raise Refused(422, "invalid_request", f"Give both {at} and {other_at}, or neither.", at)


# ---- texts, pictures and names


def _texts(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of a JSON value, keys too, with where it stands."""
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, dict):
        for key, item in cast("dict[str, Any]", value).items():
            yield at, key
            yield from _texts(item, f"{at}.{key}" if at else key)
    elif isinstance(value, list):
        for i, item in enumerate(cast("list[Any]", value)):
            yield from _texts(item, f"{at}.{i}")


def check_texts(fields: Any, limits: Limits) -> None:
    """Refuse texts that are too long, and pictures that are too large, too many, or none at all."""
    num_pictures = 0
    for at, text in _texts(fields):
        if at.rpartition(".")[2] in PICTURE_KEYS:
            num_pictures += 1
            check_picture(text, at, limits)
        elif len(text) > limits.text_chars:
            raise _over(at[:200], f"{len(text)} characters long", limits.text_chars, "characters")
    if num_pictures > limits.pictures:
        raise _over("request", f"{num_pictures} pictures", limits.pictures, "pictures")


def check_picture(uri: str, at: str, limits: Limits) -> None:
    """Refuse a picture by its length and its header; its pixels are read by the worker."""
    from disegno.engine import pictures

    hint = "Send the whole file of a PNG, JPEG or WebP as data:image/png;base64,..."
    if is_url(uri):
        raise Refused(422, "url_refused", f"{at} is an address; this server fetches no pictures.", at, hint)
    if not _DATA_URI.match(uri):
        raise Refused(422, "bad_image", f"{at} does not begin with data:image/png;base64, or the like.", at, hint)
    most = pictures.Limits(limits.picture_bytes, limits.picture_pixels, paths=False)
    try:
        pictures.size_of(base64.b64decode(uri[uri.index(",") + 1 :], validate=True), "The picture", most)
    except BadImage as error:
        raise Refused(422, "bad_image", f"{at}: {str(error)[:300]}", at, hint) from error
    except (binascii.Error, ValueError) as error:
        raise Refused(422, "bad_image", f"{at} is not base64.", at, hint) from error


def check_names(names: Iterable[tuple[str, str | None]]) -> None:
    """Refuse names that are paths: files are called by the library's names only."""
    for at, name in names:
        if name is not None and _NO_NAME.search(name):
            raise Refused(422, "unknown_name", f"{at} is a path; it must be a name.", at, "GET /v1/models lists names.")


# ---- generations


def _names_in(request: Request) -> Iterator[tuple[str, str | None]]:
    yield "model", request.model
    yield "vae", request.vae
    for i, unit in enumerate(request.controls):
        yield f"controls.{i}.name", unit.name
        yield f"controls.{i}.base", unit.base
    for i, lora in enumerate(request.loras):
        yield f"loras.{i}.name", lora.name
    if request.refiner is not None:
        yield "refiner.model", request.refiner.model
    if request.hires is not None:
        yield "hires.model", request.hires.model
        yield "hires.upscaler", request.hires.upscaler


def _prompts_in(request: Request) -> Iterator[tuple[str, str]]:
    yield "prompt", request.prompt
    yield "negative", request.negative
    yield from ((f"prompts.{i}", text) for i, text in enumerate(request.prompts))
    yield from ((f"negatives.{i}", text) for i, text in enumerate(request.negatives))
    for n, region in enumerate(request.regions):
        yield f"regions.{n}.prompt", region.prompt
        yield from ((f"regions.{n}.prompts.{i}", text) for i, text in enumerate(region.prompts))
    if request.hires is not None:
        yield "hires.prompt", request.hires.prompt or ""
        yield "hires.negative", request.hires.negative or ""
        yield from ((f"hires.prompts.{i}", text) for i, text in enumerate(request.hires.prompts))
        yield from ((f"hires.negatives.{i}", text) for i, text in enumerate(request.hires.negatives))


def check_cost(request: Request, limits: Limits) -> None:
    """Refuse sizes, steps and numbers of pictures beyond the limits; what is left to the model counts once it is known.

    The worker checks again when the request is concrete.
    """
    width, height, steps = request.width or 64, request.height or 64, request.steps or 1
    sides, pixels = [width, height], width * height
    if request.hires is not None:
        large = target_size(request.hires, width, height)
        sides += large.width, large.height
        pixels = max(pixels, large.width * large.height)
        steps = max(steps, request.hires.steps or 1)
    require_within(
        (
            ("width or height", max(sides), limits.side_px, "pixels"),
            ("batch", request.batch, limits.batch, "pictures"),
            ("steps", steps, limits.steps, "steps"),
            ("width x height x batch", pixels * request.batch, limits.pixels, "pixels"),
            ("width x height x batch x steps", work_of(request), limits.work, "pixels in all steps"),
        )
    )


def work_of(request: Request) -> int:
    """Return width times height times steps times pictures, of both passes; what is left to the model counts least."""
    width, height, steps = request.width or 64, request.height or 64, request.steps or 1
    work = width * height * steps
    if request.hires is not None:
        large = target_size(request.hires, width, height)
        work += large.width * large.height * (request.hires.steps or steps)
    return work * request.batch


def check_generate(request: Request, limits: Limits) -> None:
    """Refuse a generation that costs more than the server gives, or that names files of the machine."""
    check_cost(request, limits)
    prompts = list(_prompts_in(request))
    require_within((at, len(text), limits.prompt_chars, "characters") for at, text in prompts)
    require_within((at, len(_LORA.findall(text)), limits.networks, "networks") for at, text in prompts)
    require_within(
        (
            ("controls", len(request.controls), limits.controls, "controls"),
            ("regions", len(request.regions), limits.regions, "regions"),
            ("loras", len(request.loras), limits.networks, "networks"),
            ("styles", len(request.styles), limits.networks, "styles"),
        )
    )
    check_names(_names_in(request))
