"""A wire form as a table: each field's name, type, default, and the field of our Request that it sets.

The bounds of a field are those of the Request's field that it sets or is `like`: they are written once, there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any, cast

from pydantic import TypeAdapter

from disegno.core.request import Request
from disegno.serving.a1111.coerce import Json, Kind, coerced, shortened
from disegno.serving.a1111.errors import Path

MAX_UNKNOWN = 20  # unknown keys that are named one by one


@dataclass(frozen=True)
class Field:
    """One field of a wire form.

    `to`: the Request's field that it sets as it is (dotted: hires.scale); empty where a translation reads it instead.
    `like`: the Request's field whose bounds it has. `unused`: why a value has no effect here; such a value is reported
    unless it is the default, null or one of `off`. `when`: what else must be asked for this field to mean anything.
    `means`: what it does, in words, where neither `to` nor `unused` says it.
    """

    name: str
    kind: Kind
    default: Json = None
    to: str = ""
    like: str = ""
    low: float | None = None
    high: float | None = None
    unused: str = ""
    off: tuple[Json, ...] = ()
    when: tuple[tuple[str, Json], ...] = ()
    means: str = ""

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """Return the lowest and the highest value."""
        if source := self.to or self.like:
            low, high = bounds_of(source)
            return low if self.low is None else self.low, high if self.high is None else self.high
        return self.low, self.high


@dataclass(frozen=True)
class Given:
    """A body, read: every field's value with the defaults filled in, which were asked for, and what is reported."""

    values: Mapping[str, Json]
    asked: frozenset[str]
    warnings: tuple[str, ...] = ()
    unknown: tuple[str, ...] = field(default=())

    def text(self, name: str) -> str:
        """Return a text field; null is empty."""
        value = self.values[name]
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> float:
        """Return a number; null is 0."""
        value = self.values[name]
        return value if isinstance(value, int | float) else 0

    def whole(self, name: str) -> int:
        """Return an integer; null is 0."""
        return int(self.number(name))

    def flag(self, name: str) -> bool:
        """Return a boolean; null is false."""
        return bool(self.values[name])

    def items(self, name: str) -> list[Json]:
        """Return a list; null is empty."""
        value = self.values[name]
        return value if isinstance(value, list) else []

    def table(self, name: str) -> dict[str, Json]:
        """Return an object; null is empty."""
        value = self.values[name]
        return value if isinstance(value, dict) else {}


@cache
def _schema() -> dict[str, Any]:
    return TypeAdapter(Request).json_schema()


def _inner(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a field's schema without its null, and what it refers to."""
    for option in cast("list[dict[str, Any]]", schema.get("anyOf", [])):
        if option.get("type") != "null":
            return _inner(option)
    if "$ref" in schema:
        return cast("dict[str, Any]", _schema()["$defs"][str(schema["$ref"]).rpartition("/")[2]])
    return schema


@cache
def bounds_of(path: str) -> tuple[float | None, float | None]:
    """Return the bounds of a Request's field (dotted: hires.scale)."""
    schema = _schema()
    for name in path.split("."):
        schema = _inner(cast("dict[str, Any]", schema["properties"][name]))
    return schema.get("minimum"), schema.get("maximum")


def read_fields(table: Sequence[Field], body: Mapping[str, Json], at: Path = ()) -> Given:
    """Return the body's values by the table. Raises WireError naming the first field that is wrong."""
    values: dict[str, Json] = {}
    for row in table:
        low, high = row.bounds
        value = coerced(body.get(row.name), row.kind, (*at, row.name), low, high)
        values[row.name] = row.default if value is None else value
    names = {row.name for row in table}
    unknown = tuple(name for name in body if name not in names)
    asked = frozenset(name for name in names if body.get(name) is not None)
    ignored = (row for row in table if row.unused and values[row.name] not in (row.default, None, *row.off))
    where = "".join(f"{part}." for part in at)
    notes = (f"{where}{row.name} has no effect here: {row.unused}." for row in ignored)
    return Given(values, asked, (*notes, *unknown_keys(unknown, names, where)), unknown)


def unknown_keys(unknown: Sequence[str], known: Iterable[str], where: str = "") -> list[str]:
    """Return what to say about keys that mean nothing here: the nearest known key of each."""
    named = [_unknown(name, list(known), where) for name in unknown[:MAX_UNKNOWN]]
    return [*named, f"{len(unknown) - MAX_UNKNOWN} more keys are unknown."] if len(unknown) > MAX_UNKNOWN else named


def _unknown(name: str, known: list[str], where: str) -> str:
    near = get_close_matches(name[:100], known, n=1, cutoff=0.75)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{where}{shortened(name)[1:-1]} is unknown and was passed over.{hint}"


def nested(flat: Mapping[str, object]) -> dict[str, Any]:
    """Return dotted names as objects in objects: {"hires.scale": 2} is {"hires": {"scale": 2}}."""
    out: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        inner = out
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return out
