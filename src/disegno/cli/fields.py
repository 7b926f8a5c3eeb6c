"""Command-line flags from the fields of a request: names, types, bounds and help are written once, there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click
from pydantic import TypeAdapter

from disegno.core.request import Request

F = TypeVar("F", bound=Callable[..., Any])

NESTED = "__"  # between a group and its field: click wants identifiers
SHORT = {"seed": "-s", "batch": "-n"}
_NUMBERS = {"integer": int, "number": float}
_SINGULAR = {"styles": "--style"}  # of a list, each is given by itself
_NAMED = {"few_steps": "--few"}
_HIDDEN_DEFAULTS = (None, "", 0, 0.0, [])


def _main_type(schema: dict[str, Any]) -> dict[str, Any]:
    return next((s for s in schema["anyOf"] if s.get("type") != "null"), schema) if "anyOf" in schema else schema


def _click_type(schema: dict[str, Any]) -> click.ParamType:
    if "enum" in schema:
        return click.Choice(schema["enum"])
    number = _NUMBERS.get(schema.get("type", ""))
    if number is None:
        return click.STRING
    low, high = schema.get("minimum"), schema.get("maximum")
    if number is int:
        return click.IntRange(low, high)
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    return click.FloatRange(
        low if above is None else above,
        high if below is None else below,
        min_open=above is not None,
        max_open=below is not None,
    )


def or_none(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return what was given to an option that may be repeated, None where it was not given at all."""
    return value or None


@dataclass(frozen=True)
class Group:
    """A part of the request whose fields are flags too. `names`: flags that are not `prefix` and the field's name.

    `texts`: help that says more than the field's own.
    """

    field: str
    prefix: str
    names: Mapping[str, str]
    texts: Mapping[str, str]


FROM_HELP = (
    "The picture that is changed: a path, or a data URI (data:image/png;base64,...). A folder: each of its pictures in"
    " turn."
)
HIRES_HELP = "A second pass: the picture is enlarged this much, and drawn over at the new size."
FREEU_HELP = (
    "FreeU (Si et al. 2023): clearer shapes, for next to no time: how much of what its factors change is; 0 is off, 1"
    " all of it. For models with a UNet."
)
GROUPS = (
    Group("init", "--", {"image": "--from", "noise": "--init-noise", "outpaint": ""}, {"image": FROM_HELP}),
    Group("hires", "--hires-", {"scale": "--hires"}, {"scale": HIRES_HELP}),
    Group("refiner", "--refiner-", {"model": "--refiner"}, {}),
    Group("tiles", "--tile-", {}, {}),
    Group("guide", "--", {}, {}),
    Group("freeu", "--freeu-", {"strength": "--freeu"}, {"strength": FREEU_HELP}),
)


def nested_options(function: F) -> F:
    """Return the function with one option for each field of each group; its parameter is named `group__field`."""
    definitions: dict[str, dict[str, Any]] = TypeAdapter(Request).json_schema()["$defs"]
    parts = {"init": "InitImage", "hires": "Hires", "refiner": "Refiner", "tiles": "Tiles"}
    parts |= {"guide": "Guide", "freeu": "FreeU"}
    for group in reversed(GROUPS):
        properties = definitions[parts[group.field]]["properties"]
        for name, schema in reversed(list(properties.items())):
            long = group.names.get(name, f"{group.prefix}{name.replace('_', '-')}")
            if long:
                text = group.texts.get(name) or _text(schema)
                function = _option(f"{group.field}{NESTED}{name}", _main_type(schema), text, long)(function)
    return function


def _text(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    shown = "on" if default is True else default
    return schema.get("description", "") + ("" if default in _HIDDEN_DEFAULTS else f"  [default: {shown}]")


def request_options(exclude: set[str], of: type[Any] = Request) -> Callable[[F], F]:
    """Return a decorator that adds one option for each field of a request; an option that is not given stays None."""
    schema_of: dict[str, Any] = TypeAdapter(of).json_schema()
    properties: dict[str, dict[str, Any]] = schema_of["properties"]
    needed = set(schema_of.get("required", ()))

    def decorate(function: F) -> F:
        for name, schema in reversed([(n, s) for n, s in properties.items() if n not in exclude]):
            long = _NAMED.get(name, f"--{name.replace('_', '-')}")
            function = _option(name, _main_type(schema), _text(schema), long, name in needed)(function)
        return function

    return decorate


def _option(name: str, schema: dict[str, Any], text: str, long: str, required: bool = False) -> Callable[[F], F]:
    """Return the option of a field: a flag of a claim, an option to repeat of a list, else an option with a value."""
    kind = schema.get("type")
    if kind == "boolean":
        return click.option(f"{long}/--no-{long.removeprefix('--')}", name, default=None, help=text)
    if kind == "array":
        text = f"{text} May be repeated."
        return click.option(_SINGULAR.get(name, long), name, multiple=True, help=text, callback=or_none)
    names = [long, *([SHORT[name]] if name in SHORT else [])]
    return click.option(*names, name, type=_click_type(schema), default=None, required=required, help=text)
