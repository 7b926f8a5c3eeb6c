"""The text that a picture carries beside its pixels: A1111's parameters, in PNG, JPEG, WebP and GIF files.

What NovelAI writes is told in A1111's words, as A1111 does.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD

from disegno.core.errors import RequestError
from disegno.core.infotext import of_image, values_of, with_loras, write_infotext
from disegno.core.request import SEEDS
from disegno.core.result import Result

KEY = "parameters"
MAX_CHARACTERS = 1 << 20
PILLOW_TRIPS = (
    *(OSError, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, EOFError, struct.error),
    Image.DecompressionBombError,
)
"""What Pillow's parsers raise on damaged files."""
_MAX_JPEG_EXIF = 65_533 - 6  # bytes of a JPEG segment, without its length and "Exif\0\0"
_USER_COMMENT = 0x9286
_NOVELAI = "NovelAI"
_NOVELAI_SAMPLERS = {
    "k_euler": "Euler",
    "k_euler_ancestral": "Euler a",
    "k_dpmpp_2m": "DPM++ 2M",
    "k_dpmpp_2s_ancestral": "DPM++ 2S a",
    "k_dpmpp_sde": "DPM++ SDE",
    "k_dpm_fast": "DPM fast",
    "k_dpm_2": "DPM2",
    "k_dpm_2_ancestral": "DPM2 a",
    "k_heun": "Heun",
    "k_lms": "LMS",
    "ddim": "DDIM",
    "plms": "PLMS",
}
_UNICODE, _ASCII = b"UNICODE\0", b"ASCII\0\0\0"


def parameters_of(result: Result, image: int) -> str:
    """Return A1111's text of one picture of a result: every program of the field reads it."""
    request = of_image(result.request, image)
    version = f"Disegno {result.environment.get('disegno', '')}".strip()
    subseed = (request.subseed + image) % SEEDS  # A1111 parity: the variation's seed always counts up
    prompt = result.prompts[image] if result.prompts else request.prompt
    negative = result.negatives[image] if result.negatives else request.negative
    values = values_of(request, result.seeds[image], subseed, {**result.labels, "Version": version})
    return write_infotext(with_loras(prompt, request.loras), negative, values)


def text_in(picture: Image.Image) -> str | None:
    """Return the text of parameters that a loaded picture carries: PNG's, else EXIF's comment, else GIF's."""
    text = picture.info.get(KEY)
    if isinstance(text, str):
        return text
    if picture.info.get("Software") == _NOVELAI:
        return _of_novelai(picture.info, picture.size)
    comment = picture.getexif().get_ifd(IFD.Exif).get(_USER_COMMENT)
    if isinstance(comment, bytes):
        return _comment(comment)
    comment = picture.info.get("comment")
    return comment.decode("utf-8", "replace") if isinstance(comment, bytes) else None


def _of_novelai(info: Mapping[Any, Any], size: tuple[int, int]) -> str | None:
    """Return the text of a picture of NovelAI; None where its JSON cannot be read."""
    try:
        told: Any = json.loads(str(info.get("Comment")))
        sampler = _NOVELAI_SAMPLERS.get(str(told["sampler"]), "Euler a")  # A1111 parity: what it does not know
        line = f"Steps: {told['steps']}, Sampler: {sampler}, CFG scale: {told['scale']}, Seed: {told['seed']}"
        negative = told["uc"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    said = f"{line}, Size: {size[0]}x{size[1]}, Clip skip: 2, ENSD: 31337"
    return f"{info.get('Description', '')}\nNegative prompt: {negative}\n{said}"


def _comment(comment: bytes) -> str | None:
    """Return EXIF's UserComment: after its 8 bytes that name the encoding, of which programs write two by one name."""
    if comment.startswith(_UNICODE):
        body = comment[len(_UNICODE) :]
        little = body[1:2] == b"\0"  # the first letter of a prompt lies in Latin
        return body.decode("utf-16-le" if little else "utf-16-be", "replace")
    if comment.startswith(_ASCII):
        return comment[len(_ASCII) :].decode("utf-8", "replace")
    return None


def exif_of(text: str) -> Image.Exif:
    """Return EXIF with this text as its comment, as A1111 writes it into JPEG and WebP files."""
    exif = Image.Exif()
    exif.get_ifd(IFD.Exif)[_USER_COMMENT] = _UNICODE + text.encode("utf-16-be", "replace")
    return exif


def require_room(exif: Image.Exif) -> None:
    """Raise RequestError where a JPEG file cannot hold this EXIF."""
    if (size := len(exif.tobytes())) > _MAX_JPEG_EXIF:
        raise RequestError(
            f"The picture's text takes {size} bytes; a JPEG file holds {_MAX_JPEG_EXIF}. Choose .png or .webp."
        )
