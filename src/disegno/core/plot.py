"""Plans of many pictures of one request: an X/Y/Z plot over any of its fields, and a prompt matrix. No torch.

An axis is a field and its values, as texts. A field is named as in the request: steps, cfg, hires.denoise,
init.denoise, controls.canny.strength, controls.0.end ...; and there are two more: `size` (WIDTHxHEIGHT), and `replace`,
whose first value is looked for in the prompts and replaced by each of the values.
"""

import csv
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from io import StringIO
from itertools import product
from typing import Any, cast

from pydantic import TypeAdapter

from disegno.core.errors import RequestError, UnknownName
from disegno.core.request import NUM_SEEDS, Request, make_request

MAX_CELLS = 256
SIZE, REPLACE = "size", "replace"
_SEEDS = ("seed", "subseed")
_WORDS = {"prompt": "prompts", "negative": "negatives"}  # of all images, of each
_NUMBER = r"\s*([+-]?\d{1,20}(?:\.\d{1,20})?)\s*"
_RANGE = re.compile(rf"{_NUMBER}-{_NUMBER}(?:\({_NUMBER}\)|\[\s*(\d{{1,9}})\s*\])?")

Fields = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """A field of the request, and the values that it takes, as texts."""

    field: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One request of a plot, and its place along x, y and z."""

    place: tuple[int, int, int]
    request: Request


@dataclass(frozen=True)
class Plot:
    """A plan of pictures. `labels`: of the places along x, y and z; an axis that is not used has one, empty."""

    cells: tuple[Cell, ...]
    labels: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def parse_axis(text: str) -> Axis:
    """Return the axis that FIELD=V1,V2,... names; a value with a comma stands in double quotes. Raises RequestError.

    Ranges are written as in A1111: 1-5 (1 2 3 4 5), 1-9(+2) (1 3 5 7 9), 0-1[3] (0 0.5 1).
    """
    name, equals, rest = text.partition("=")
    values = listed(rest)
    if not (name.strip() and equals and values and all(values)):
        raise RequestError(f"{text!r} is no axis: it wants FIELD=V1,V2,..., for example cfg=2,4,6 or seed=1-4.")
    return Axis(name.strip(), tuple(values))


def listed(text: str) -> list[str]:
    """Return the texts between commas and line ends; one in double quotes may hold them. Raises RequestError."""
    try:
        rows = list(csv.reader(StringIO(text, newline=None), skipinitialspace=True))
    except csv.Error as error:
        raise RequestError(f"{text[:60]!r} ... cannot be read as values between commas ({error}).") from error
    return [value.strip() for row in rows for value in row]


def spread(values: Sequence[str], is_whole: bool) -> tuple[str, ...]:
    """Return the values with their ranges written out. Raises RequestError for one that has no end, and too many."""
    out: list[str] = []
    for value in values:
        found = _RANGE.fullmatch(value)
        out += _range(value, found, is_whole) if found else [value]
        if len(out) > MAX_CELLS:
            raise RequestError(f"An axis has more than {MAX_CELLS} values. Give fewer.")
    return tuple(out)


def _range(text: str, found: re.Match[str], is_whole: bool) -> list[str]:
    low, high = Fraction(found[1]), Fraction(found[2])  # a seed has more digits than a float
    if found[4]:
        count = int(found[4])
        numbers = [low + (high - low) * i / max(count - 1, 1) for i in range(min(count, MAX_CELLS + 1))]
    else:
        step = Fraction(found[3] or (1 if high >= low else -1))
        if step == 0 or (high - low) / step < 0 or (high - low) / step > MAX_CELLS:
            raise RequestError(f"The range {text!r} leads nowhere, or to more than {MAX_CELLS} values.")
        numbers = [low + step * i for i in range(int((high - low) / step) + 1)]
    return [str(round(number)) if is_whole else f"{round(float(number), 6):g}" for number in numbers]


# ---- fields by name


def _schema_at(path: Sequence[str]) -> Fields | None:
    """Return the JSON schema of a field; None where there is no such field."""
    whole = TypeAdapter(Request).json_schema()
    here: Fields = whole
    for name in path:
        here = _opened(here, whole)
        if here.get("type") == "array":
            here = cast(Fields, here["items"])
        elif name in here.get("properties", {}):
            here = cast(Fields, here["properties"][name])
        else:
            return None
    return _opened(here, whole)


def _opened(schema: Fields, whole: Fields) -> Fields:
    """Return a schema with its reference followed, and without its null."""
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    first = options[0]
    return cast(Fields, whole["$defs"][first["$ref"].rpartition("/")[2]]) if "$ref" in first else first


def _change_of(axis: Axis, request: Request) -> tuple[Callable[[Fields, str], None], tuple[str, ...]]:
    """Return what sets a value of the axis in a request's fields, and the values. Raises RequestError."""
    if axis.field == REPLACE:
        first = axis.values[0]
        if not any(first in text for text in _texts(request)):
            raise RequestError(f"{first!r}, which is to be replaced, is in neither the prompt nor the negative prompt.")
        return lambda fields, value: _replace(fields, first, value), axis.values
    if axis.field == SIZE:
        return _set_size, axis.values
    path = axis.field.split(".")
    schema = _schema_at(path)
    if schema is None:
        raise _unknown(axis.field)
    kind = schema.get("type")
    if kind == "array" and schema["items"].get("type") == "string":
        return lambda fields, value: _set(fields, path, [value]), axis.values
    if kind in ("object", "array"):
        raise RequestError(
            f"{axis.field} holds several values, and an axis changes one: name it, as in controls.0.strength or"
            " loras.0.strength, or change words of the prompt, as in replace=OLD,NEW."
        )
    whole = kind == "integer"
    values = spread(axis.values, whole) if kind in ("integer", "number") else axis.values
    return lambda fields, value: _set(fields, path, value), values


def _unknown(name: str) -> RequestError:
    parts = ("init", "hires", "refiner", "tiles", "controls")
    known = [field for field in Request.__dataclass_fields__ if field not in parts]
    nested = ("init.denoise", "hires.denoise", "hires.upscaler", "refiner.at", "controls.0.strength")
    return UnknownName.of("field of a request", name, [SIZE, REPLACE, *nested, *known])


def _texts(request: Request) -> list[str]:
    """Return all that a request draws, and keeps away from: in both passes, and of each image."""
    passes = [words for words in (request, request.hires) if words is not None]
    own = [text for words in passes for text in (words.prompt, words.negative) if text is not None]
    return own + [text for words in passes for text in (*words.prompts, *words.negatives)]


def _replace(fields: Fields, first: str, value: str) -> None:
    for words in filter(None, (fields, fields["hires"])):
        for name, of_images in _WORDS.items():
            words[name] = words[name] and words[name].replace(first, value)
            words[of_images] = [text.replace(first, value) for text in words[of_images]]


def _set_size(fields: Fields, value: str) -> None:
    found = re.fullmatch(r"(\d+)[xX×](\d+)", value)
    if not found:
        raise RequestError(f"{value!r} is no size: it wants WIDTHxHEIGHT in pixels, for example 512x768.")
    fields["width"], fields["height"] = int(found[1]), int(found[2])


def _set(fields: Fields, path: Sequence[str], value: str | list[str]) -> None:
    """Set a field by its path. Raises RequestError where a part of the request that it belongs to is not there."""
    here: Any = fields
    for n, name in enumerate(path[:-1]):
        here = _part(here, name)
        if here is None:
            missing = ".".join(path[: n + 1])
            raise RequestError(f"The axis {'.'.join(path)} changes {missing}, which this request has not: give it one.")
    here[path[-1]] = value
    if path[-1] in _WORDS:
        here[_WORDS[path[-1]]] = []  # each image's own would stand instead


def _part(here: Any, name: str) -> Any:
    """Return a part by its name; of the controls, by its place or its control's name."""
    if not isinstance(here, list):
        return here.get(name)
    parts = cast("list[Fields]", here)
    if name.isdigit():
        return parts[int(name)] if int(name) < len(parts) else None
    return next((part for part in parts if part.get("name") == name), None)


# ---- plans


def plan_plot(request: Request, axes: Sequence[Axis]) -> Plot:
    """Return the plot of a request over one to three axes: x, y, z. Raises RequestError.

    A seed that the request leaves open is drawn once, for all.
    """
    changes = [_change_of(axis, request) for axis in axes]
    changes += [(lambda fields, value: None, ("",))] * (3 - len(axes))
    num = len(changes[0][1]) * len(changes[1][1]) * len(changes[2][1])
    if num > MAX_CELLS:
        raise RequestError(f"The plot has {num} cells; at most {MAX_CELLS} are possible. Give fewer values.")
    base, cells = _fields(request), list[Cell]()
    for z, y, x in product(*(range(len(values)) for _, values in reversed(changes))):
        fields = _copied(base)
        for (change, values), i in zip(changes, (x, y, z), strict=True):
            change(fields, values[i])
        cells.append(Cell((x, y, z), make_request(fields)))
    labels = [_labels(axis.field, values) for axis, (_, values) in zip(axes, changes, strict=False)]
    labels += [("",)] * (3 - len(axes))
    models = list(dict.fromkeys(cell.request.model for cell in cells))  # a model is opened once, not once a row
    cells.sort(key=lambda cell: models.index(cell.request.model))
    return Plot(tuple(cells), (labels[0], labels[1], labels[2]))


def _labels(field: str, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return what a sheet calls an axis's values: by the field's name, and its control's."""
    if field in (SIZE, REPLACE):
        return values
    name = field.removeprefix("controls.").removeprefix("init.").replace(".", " ").replace("_", " ")
    return tuple(f"{name} {value}" for value in values)


def _fields(request: Request) -> Fields:
    """Return the request as nested dicts, its seeds drawn."""
    drawn = {name: random.randrange(NUM_SEEDS) for name in _SEEDS if getattr(request, name) == -1}
    return cast(Fields, TypeAdapter(Request).dump_python(replace(request, **drawn), mode="json"))


def _copied(fields: Any) -> Any:
    if isinstance(fields, dict):
        return {name: _copied(value) for name, value in cast(Fields, fields).items()}
    return [_copied(value) for value in cast("list[Any]", fields)] if isinstance(fields, list) else fields


def plan_matrix(request: Request, parts_first: bool = False) -> Plot:
    """Return the plot of a prompt "a|b|c": every choice of b and c beside a, as in A1111's prompt matrix.

    `parts_first`: what is chosen stands before a. Raises RequestError where there is nothing to choose.
    """
    first, *parts = (part.strip() for part in request.prompt.split("|"))
    if not parts or 2 ** len(parts) > MAX_CELLS:
        raise RequestError(
            f"The prompt {request.prompt!r} is no matrix: it wants 1 to 8 parts after the first, as in a|b|c."
        )
    across = parts[: -(-len(parts) // 2)]
    down = parts[len(across) :]
    base, cells = _fields(request), list[Cell]()
    for y, x in product(range(2 ** len(down)), range(2 ** len(across))):
        chosen = [*_chosen(across, x), *_chosen(down, y)]
        words = [*chosen, first] if parts_first else [first, *chosen]
        cells.append(Cell((x, y, 0), make_request(_copied(base) | {"prompt": ", ".join(words), "prompts": []})))
    labels = [tuple(", ".join(_chosen(some, n)) or "-" for n in range(2 ** len(some))) for some in (across, down)]
    return Plot(tuple(cells), (labels[0], labels[1] if down else ("",), ("",)))


def _chosen(parts: Sequence[str], bits: int) -> list[str]:
    return [part for n, part in enumerate(parts) if bits >> n & 1]
