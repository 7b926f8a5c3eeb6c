"""How a picture was made, as A1111 writes it into the picture: prompt, negative prompt, and one line of parameters."""

import json
import re
from collections.abc import Iterator, Sequence

from PIL import Image
from PIL.ExifTags import IFD

from disegno.core.request import Request

_USER_COMMENT = 0x9286
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_MIN_PAIRS = 3  # A1111 parity: a last line with fewer is no line of parameters
_SIZE = re.compile(r"(\d+)x(\d+)")

_KARRAS, _EXPONENTIAL = "Karras", "Exponential"
_OWN_SCHEDULE = {
    **dict.fromkeys(("DPM++ 2M", "DPM++ SDE", "DPM++ 2S a", "DPM2", "DPM2 a", "Restart"), _KARRAS),
    **dict.fromkeys(("DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE"), _EXPONENTIAL),
}
_FILLS = {"fill": "fill", "noise": "latent noise", "nothing": "latent nothing"}


def quoted(value: object) -> str:
    """Return a value as it stands in the line: with a comma, a colon or a new line in it, as a JSON text."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",:\n") else text


def infotext(
    request: Request, seed: int, subseed: int, model: str, model_hash: str, units: Sequence[str], version: str
) -> str:
    """Return the text of one picture of a concrete request. `units`: of its controls, in A1111's words."""
    entries = [*_entries(request, seed, subseed, model, model_hash), *_later(request)]
    entries += [(f"ControlNet {i}", unit) for i, unit in enumerate(units)]
    entries.append(("Version", version))
    line = ", ".join(f"{name}: {quoted(value)}" for name, value in entries if value not in (None, ""))
    negative = f"\nNegative prompt: {request.negative}" if request.negative else ""
    return f"{request.prompt}{negative}\n{line}".strip()


def _entries(request: Request, seed: int, subseed: int, model: str, model_hash: str) -> Iterator[tuple[str, object]]:
    schedule = request.schedule
    if schedule == "Automatic":
        schedule = _OWN_SCHEDULE.get(request.sampler or "", "Automatic")
    varied = request.subseed_strength > 0
    yield "Steps", request.steps
    yield "Sampler", request.sampler
    yield "Schedule type", schedule
    yield "CFG scale", request.cfg
    yield "Seed", seed
    yield "Size", f"{request.width}x{request.height}"
    yield "Model hash", model_hash
    yield "Model", model
    yield "Variation seed", subseed if varied else None
    yield "Variation seed strength", request.subseed_strength if varied else None
    yield "Seed resize from", f"{request.seed_width}x{request.seed_height}" if request.seed_width else None
    yield "Denoising strength", _denoising(request)
    yield "Clip skip", request.clip_skip if request.clip_skip > 1 else None
    yield "ENSD", request.seed_delta or None
    yield "RNG", request.noise_source.upper()


def _denoising(request: Request) -> float | None:
    if request.init is not None:
        return request.init.denoise
    return request.hires.denoise if request.hires is not None else None


def _later(request: Request) -> Iterator[tuple[str, object]]:
    """Yield what A1111 keeps as extra parameters."""
    init, hires = request.init, request.hires
    if init is not None and init.mask is not None:
        yield "Mask mode", "Inpaint not masked" if init.invert else None
        yield "Mask blur", init.mask_blur or None
        yield "Inpaint area", "Only masked" if init.only_masked else None
        yield "Masked area padding", init.padding if init.only_masked else None
        yield "Masked content", _FILLS.get(init.fill or "")
    if hires is not None:
        sized = hires.width or hires.height
        yield (
            ("Hires resize", f"{hires.width or 0}x{hires.height or 0}")
            if sized
            else ("Hires upscale", f"{hires.scale:g}")
        )
        yield "Hires steps", hires.steps
        yield "Hires upscaler", hires.upscaler
        yield "Hires sampler", hires.sampler
        yield "Hires prompt", hires.prompt
        yield "Hires negative prompt", hires.negative
    yield "Eta", request.eta if request.eta not in (None, 1.0) else None
    yield "Sigma churn", request.churn or None
    yield "Sigma noise", request.churn_noise if request.churn_noise != 1 else None


def text_of(picture: Image.Image) -> str | None:
    """Return what a picture says about how it was made: PNG's text, else EXIF's comment, else GIF's."""
    text = picture.info.get("parameters")
    if isinstance(text, str):
        return text
    comment = picture.getexif().get_ifd(IFD.Exif).get(_USER_COMMENT)
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        return comment[8:].decode("utf-16-be", "replace")
    comment = picture.info.get("comment")
    return comment.decode("utf-8", "replace") if isinstance(comment, bytes) else None


def parameters_of(text: str) -> dict[str, str]:
    """Return the entries of a picture's text by their names; `Size` also as Size-1 and Size-2, the prompts as well."""
    *lines, last = text.strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < _MIN_PAIRS:
        lines, pairs = [*lines, last], []
    prompt, negative, into_negative = list[str](), list[str](), False
    for line in lines:
        if line.strip().startswith("Negative prompt:"):
            into_negative, line = True, line.strip().removeprefix("Negative prompt:")
        (negative if into_negative else prompt).append(line.strip())
    found = {"Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative)}
    for name, value in pairs:
        plain = _unquoted(value.strip())
        if size := _SIZE.fullmatch(plain):
            found |= {f"{name}-1": size[1], f"{name}-2": size[2]}
        else:
            found[name] = plain
    return found


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
