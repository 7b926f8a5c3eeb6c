"""From a command line's words to a Request: controls, sizes, axes, and the flags of what lies inside a request."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from disegno.cli.fields import NESTED
from disegno.core.errors import DisegnoError, RequestError, UnknownName
from disegno.core.files import path_of
from disegno.core.request import ControlUnit, Region, Request, describe, make_request
from disegno.core.settings import load_settings
from disegno.core.told import Told
from disegno.prompts.networks import Tag, lora_of

CONTROL_HELP = """NAME[=IMAGE][,key=value...]: a condition and the picture that shows it; without one, the picture of
--from; a folder: each of its pictures in turn, those of several folders by their names. Keys: strength, curve
(0.2@0.1,0.5@0.3), layers (1:0.8:...), start, end, mode, resize, region, mask, passes, crop, resolution, base, task
(which condition it is, of a control that knows several), mix (true: one control of the mean of such conditions,
UniControl's), annotate (an annotator's name, or none when the picture already is the drawing), and the annotator's own
parameters. May be repeated."""
REGION_HELP = """WORDS PLACE: words for a part of the canvas: a box in shares of it, x=0,y=0.5,w=0.5,h=0.5 (up to the
edge where w or h is left out), or mask=FILE, white where they hold, grey in part; and weight, beside --base-weight. May
be repeated."""
LORA_HELP = """NAME[:WEIGHT[:NET'S WEIGHT]]: a style LoRA, as <lora:...> in a prompt. May be repeated."""
OUTPAINT_HELP = (
    "left=64,right=64,top=0,bottom=0: draw what lies around the picture of --from, in pixels, multiples of 8."
)

_REQUEST: TypeAdapter[Request] = TypeAdapter(Request)
_UNIT: TypeAdapter[ControlUnit] = TypeAdapter(ControlUnit)
_REGION: TypeAdapter[Region] = TypeAdapter(Region)
_PLACE = ("x", "y", "w", "h", "mask", "weight")
_WORDS = {"prompt", "negative", "prompts", "negatives", "styles", "batch"}
_OF_ALL = {"batch", "prompts", "negatives"}  # said of all of a batch's images
_KEYS = set(ControlUnit.__dataclass_fields__) - {"name", "image", "params"}


def parse_scalar(text: str) -> bool | int | float | str:
    """Return the JSON scalar that `text` spells, else the text itself."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float) else text


def parse_control(text: str) -> dict[str, Any]:
    """Return the fields of a ControlUnit from NAME[=IMAGE][,key=value...]. Raises RequestError."""
    first, *pairs = re.split(r",(?=[A-Za-z_]+=)", text)
    name, _, image = first.partition("=")
    if not name:
        raise RequestError(
            f"--control {text!r} cannot be read: it wants NAME=IMAGE[,key=value...],"
            " for example canny=photo.jpg,strength=0.8."
        )
    unit: dict[str, Any] = {"name": name, "image": image or None, "params": {}}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key in _KEYS:
            unit[key] = value.split(":") if key == "layers" else value
        else:
            unit["params"][key] = parse_scalar(value)
    try:
        read = _UNIT.validate_python(unit)
    except ValidationError as error:
        raise RequestError(f"--control {name} is not valid. {describe(error)}") from error
    return {key: getattr(read, key) for key in unit}


def parse_region(words: str, place: str) -> dict[str, Any]:
    """Return the fields of a Region from its words and key=value,... Raises RequestError."""
    pairs = {key: value for key, _, value in (pair.partition("=") for pair in re.split(r",(?=[A-Za-z_]+=)", place))}
    if strange := [key for key in pairs if key not in _PLACE]:
        raise RequestError(
            f"--region {words!r} {place!r} cannot be read: {', '.join(strange)} is none of {', '.join(_PLACE)}. It"
            ' wants words and a place, as in --region "a car" x=0,y=0.5,w=0.5,h=0.5 or --region "a tree" mask=a.png.'
        )
    try:
        read = _REGION.validate_python({"prompt": words, **pairs})
    except ValidationError as error:
        raise RequestError(f"--region {words!r} is not valid. {describe(error)}") from error
    return asdict(read)


def parse_size(text: str) -> tuple[int, int]:
    """Return (width, height) in pixels from WIDTHxHEIGHT. Raises RequestError."""
    found = re.fullmatch(r"(\d+)[xX×](\d+)", text)
    if not found:
        raise RequestError(f"--size {text!r} cannot be read: it wants WIDTHxHEIGHT in pixels, for example 512x768.")
    return int(found[1]), int(found[2])


def parse_outpaint(text: str) -> dict[str, str]:
    """Return the fields of an Outpaint from left=64,right=64. Raises RequestError."""
    pairs = dict(pair.split("=", 1) for pair in text.split(",") if "=" in pair)
    if len(pairs) != len(text.split(",")) or not pairs.keys() <= {"left", "right", "top", "bottom"}:
        raise RequestError(f"--outpaint {text!r} cannot be read: it wants sides and pixels, as in left=64,right=64.")
    return pairs


def build_request(
    prompt: str | None,
    again: Path | None,
    control: tuple[str, ...],
    size: str | None,
    given: dict[str, Any],
    alone: bool = False,
) -> tuple[Request, int | None]:
    """Return the request, and which image of its batch to keep when an old picture is made again (None: all).

    `given`: the values of the flags by field; nested ones as `init__denoise`. A picture that is made again as it was
    is drawn with those beside it, for its last bits; one that is changed by flags, or with `alone`, by itself.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    if prompt is not None:
        fields["prompt"] = prompt
    if size is not None:
        fields["width"], fields["height"] = parse_size(size)
    if control:
        fields["controls"] = [parse_control(text) for text in control]
    if fields.get("regions"):
        fields["regions"] = [parse_region(*words) for words in fields["regions"]]
    if fields.get("loras"):
        fields["loras"] = tuple(lora_of(Tag("lora", tuple(text.split(":")))) for text in fields["loras"])
    if again is None:
        fields = _nested({}, fields)
        _check_images(fields)
        return make_request(fields), None
    from disegno.engine.concrete import following
    from disegno.engine.record import read

    record = read(again)
    if (fields or alone) and not fields.keys() & _OF_ALL:
        record = record.alone()
    if record.told is not None:
        fields = _as_told(record.told, fields)
    then: dict[str, Any] = _REQUEST.dump_python(following(record.replay()))
    if record.models and "model" not in fields:
        then["model"] = _found(then["model"], record.models)
    if fields.keys() & _WORDS:  # other words: not those that were filled in then
        asked: dict[str, Any] = _REQUEST.dump_python(record.request)
        then |= {name: asked[name] for name in _WORDS}
        then["regions"] = [{**region, "prompts": ()} for region in then["regions"]]
        then |= {"prompts": ()} if "prompt" in fields else {}
        then |= {"negatives": ()} if "negative" in fields else {}
    if then["hires"] and fields.keys() & {*_WORDS, f"hires{NESTED}prompt", f"hires{NESTED}negative"}:
        then["hires"] |= {"prompts": (), "negatives": ()}
    return make_request(_nested(then, fields)), record.image if not given.get("batch") else None


def _as_told(told: Told, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with what A1111's text says beside its Request: the model, and how a picture was changed."""
    own = {} if "model" in fields or not told.models else {"model": _model_of(told.models)}
    if f"init{NESTED}image" in fields:
        masked = told.masked if f"init{NESTED}mask" in fields else {}
        own |= {f"init{NESTED}{name}": value for name, value in (told.init | masked).items()}
    return own | dict(fields)


def _found(name: str, others: tuple[str, ...]) -> str:
    """Return a model's name, or where it means nothing here, what another of its names does. Raises UnknownName."""
    from disegno.engine.studio import BUILT_IN
    from disegno.weights.library import Library

    if name == BUILT_IN or path_of(name) is not None:
        return name
    try:
        Library(load_settings()).find(name, "model")
    except UnknownName:
        return _model_of(others)
    except DisegnoError:  # several have the name, or it is damaged: said where it is opened
        return name
    return name


def _model_of(names: tuple[str, ...]) -> str:
    """Return the first of a model's names that is known here. Raises UnknownName."""
    from disegno.engine.studio import BUILT_IN
    from disegno.weights.library import Library

    if BUILT_IN in names:
        return BUILT_IN
    library = Library(load_settings())
    for name in names:
        with suppress(UnknownName):
            return str(library.find(name, "model").path)
    called = " or ".join(repr(name) for name in names)
    raise UnknownName(
        f"The picture was drawn by the model {called}, which is not in your model folders. Put it there, or choose"
        " another one with --model."
    )


def _nested(base: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base's fields with the given ones in their places. Raises RequestError."""
    fields = dict(base)
    for name, value in given.items():
        group, _, inner = name.rpartition(NESTED)
        if group:
            fields[group] = (fields.get(group) or {}) | {inner: value}
        elif name == "tiles":
            fields["tiles"] = (fields.get("tiles") or {}) if value else None
        else:
            fields[name] = value
    if (init := fields.get("init")) and not init.get("image"):
        changed = ", ".join(sorted(init))
        raise RequestError(f"{changed}: said of a picture that is changed, and there is none. Give --from PICTURE.")
    if (refiner := fields.get("refiner")) and not refiner.get("model"):
        raise RequestError(f"{', '.join(sorted(refiner))}: said of a refiner, and there is none. Give --refiner MODEL.")
    return fields


def _check_images(fields: Mapping[str, Any]) -> None:
    lone = next((unit["name"] for unit in fields.get("controls", ()) if unit["image"] is None), None)
    if lone is not None and not fields.get("init"):
        raise RequestError(
            f"--control {lone} has no picture: it wants NAME=IMAGE[,key=value...], for example {lone}=photo.jpg,"
            " or the picture of --from."
        )
