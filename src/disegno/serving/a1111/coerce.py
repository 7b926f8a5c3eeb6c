"""JSON values as A1111's clients send them, made into the type that a field has.

A1111 parity: numbers and booleans may come as text ("512", "true"), and true is the integer 1, as pydantic 1 reads
them. Narrower than that on purpose: a fraction is no integer, true is no fraction, and NaN and infinity are no numbers.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias, cast

from disegno.serving.a1111.errors import Fault, Path, WireError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Kind = Literal["str", "int", "float", "bool", "texts", "list", "object", "any"]

_TRUE = frozenset({"true", "1", "yes", "on", "t", "y"})
_FALSE = frozenset({"false", "0", "no", "off", "f", "n"})
_LONGEST_NUMBER = 64  # characters: Python reads an integer in time that grows with the square of its length


def _text(value: Json) -> str | None:
    if not isinstance(value, str):
        return None
    return value.encode("utf-8", "replace").decode()  # a lone half of a surrogate pair becomes "?"


def _float(value: Json) -> float | None:
    if isinstance(value, str) and len(value) <= _LONGEST_NUMBER:
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _int(value: Json) -> int | None:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str) and len(value) <= _LONGEST_NUMBER:
        try:
            return int(value)
        except ValueError:
            return None
    number = _float(value) if isinstance(value, float) else None
    return int(number) if number is not None and number.is_integer() else None


def _bool(value: Json) -> bool | None:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, str | int) else ""
    return True if word in _TRUE else False if word in _FALSE else None


def _list(value: Json) -> list[Json] | None:
    return value if isinstance(value, list) else None


def _texts(value: Json) -> list[str] | None:
    if not isinstance(value, list):
        return None
    texts = [_text(item) for item in value]
    return None if None in texts else cast("list[str]", texts)


def _object(value: Json) -> dict[str, Json] | None:
    return value if isinstance(value, dict) else None


_READERS: Mapping[Kind, tuple[Callable[[Json], object], str, str]] = {
    "str": (_text, "str type expected", "type_error.str"),
    "int": (_int, "value is not a valid integer", "type_error.integer"),
    "float": (_float, "value is not a valid float", "type_error.float"),
    "bool": (_bool, "value could not be parsed to a boolean", "type_error.bool"),
    "texts": (_texts, "value is not a valid list of strings", "type_error.list"),
    "list": (_list, "value is not a valid list", "type_error.list"),
    "object": (_object, "value is not a valid dict", "type_error.dict"),
    "any": (lambda value: value, "", ""),
}


def coerced(value: Json, kind: Kind, path: Path, low: float | None = None, high: float | None = None) -> Json:
    """Return the value as `kind`, between the bounds where they are given. Raises WireError naming the path."""
    read, message, name = _READERS[kind]
    found = cast("Json", read(value))
    if found is None and value is not None:
        raise WireError.of_fields(Fault(path, f"{message} (given: {shortened(value)})", name))
    if isinstance(found, int | float) and not isinstance(found, bool):
        _check(found, path, low, high)
    return found


def _check(number: float, path: Path, low: float | None, high: float | None) -> None:
    if low is not None and number < low:
        message = f"ensure this value is greater than or equal to {low:g} (given: {shortened(number)})"
        raise WireError.of_fields(Fault(path, message, "value_error.number.not_ge"))
    if high is not None and number > high:
        message = f"ensure this value is less than or equal to {high:g} (given: {shortened(number)})"
        raise WireError.of_fields(Fault(path, message, "value_error.number.not_le"))


def shortened(value: object, limit: int = 60) -> str:
    """Return a value for an error's text: its first characters, and no control characters."""
    if isinstance(value, int) and abs(value) >= 10**limit:
        return "a number of more than 60 digits"
    text = repr(value if not isinstance(value, str) else value[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "..."
