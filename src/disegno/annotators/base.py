"""What an annotator is: a module that turns a picture into the drawing that a control wants to see.

    TITLE = "Canny"                                  as forms show it
    SUMMARY = "White edges of one pixel on black."   one sentence

    @dataclass(frozen=True, kw_only=True, config=PARAMS)
    class Params:
        low: Annotated[int, Field(ge=1, le=255)] = 100
        \"\"\"The help of this parameter.\"\"\"

    def annotate(image: Picture, params: Params) -> Picture: ...

`annotate` returns a new picture of the same size, leaves `image` as it is, and depends on nothing else: randomness
comes from a parameter `seed`. Four more names are optional:

    A1111_NAMES = ("canny",)             what A1111's ControlNet extension calls the same module
    A1111_SLIDERS = ("low", "high")      the parameters that its threshold_a and threshold_b set
    MEASURE = "edge-f1"                  what two of its drawings are compared by: see `training/measures.py`
    SIZING = "padded"                    how `annotate_at` shows the picture: at its "own" size, at a size whose
                                         "short-side" is the resolution (if unset), or that, "padded" to 64
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import ModuleType
from typing import Any, Literal, cast

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from disegno.annotators import ANNOTATORS
from disegno.annotators.maps import Picture, resize_map, resize_short_side, to_picture
from disegno.core.errors import BadImage, DisegnoError, RequestError, UnknownName
from disegno.core.request import Scalar
from disegno.core.request import describe as describe_errors

__all__ = [
    "PARAMS",
    "Annotator",
    "ParamSpec",
    "Picture",
    "Sizing",
    "annotate_at",
    "describe",
    "find_a1111",
    "make_params",
    "params_from_a1111",
    "read",
    "to_picture",
]

PARAMS = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
"""How every `Params` is made: unknown names are errors, and the text under a field is its help."""

Sizing = Literal["own", "short-side", "padded"]
Kind = Literal["int", "float", "bool", "choice", "text"]
_KINDS: dict[str, Kind] = {"integer": "int", "number": "float", "boolean": "bool", "string": "text"}
_PAD = 64  # A1111 parity: pictures are shown to its annotators at a multiple of 64


@dataclass(frozen=True)
class ParamSpec:
    """One parameter, as command lines, forms and schemas need it. Bounds are inclusive; None is unbounded."""

    name: str
    kind: Kind
    default: Scalar
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def values(self) -> str:
        """Return what it may be, in words: `1 to 255`, `standard or dog`, `true or false`, `text`."""
        if self.choices:
            return " or ".join(self.choices)
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum:g} to {self.maximum:g}" if self.maximum < 10**6 else f"from {self.minimum:g}"
        return {"bool": "true or false", "text": "text"}.get(self.kind, self.kind)


@dataclass(frozen=True)
class Annotator:
    """An annotator's module, read and checked."""

    name: str
    title: str
    summary: str
    params: type[object]
    run: Callable[[Picture, object], Picture]
    a1111_names: tuple[str, ...]
    a1111_sliders: tuple[str, ...]
    sizing: Sizing


def read(module: ModuleType) -> Annotator:
    """Return what the module says about itself. Raises DisegnoError naming what it lacks."""
    name = module.__name__.rpartition(".")[2].replace("_", "-")
    if missing := [part for part in ("TITLE", "SUMMARY", "Params", "annotate") if not hasattr(module, part)]:
        raise DisegnoError(
            f"{module.__name__} is not an annotator: it has no {', '.join(missing)}. "
            "disegno.annotators.base says what it needs."
        )
    return Annotator(
        name=name,
        title=str(module.TITLE),
        summary=str(module.SUMMARY),
        params=cast("type[object]", module.Params),
        run=cast("Callable[[Picture, object], Picture]", module.annotate),
        a1111_names=cast("tuple[str, ...]", getattr(module, "A1111_NAMES", ())),
        a1111_sliders=cast("tuple[str, ...]", getattr(module, "A1111_SLIDERS", ())),
        sizing=cast("Sizing", getattr(module, "SIZING", "short-side")),
    )


def describe(module: ModuleType) -> list[ParamSpec]:
    """Return the annotator's parameters, in the order of its `Params`."""
    schema = cast("dict[str, dict[str, dict[str, Any]]]", TypeAdapter(read(module).params).json_schema())
    return [_spec(name, field) for name, field in schema.get("properties", {}).items()]


def _spec(name: str, field: Mapping[str, Any]) -> ParamSpec:
    """Return the parameter that a JSON schema's field describes."""
    choices = tuple(str(choice) for choice in field.get("enum", ()))
    return ParamSpec(
        name=name,
        kind="choice" if choices else _KINDS[str(field["type"])],
        default=cast("Scalar", field["default"]),
        help=inspect.cleandoc(str(field.get("description", ""))),
        minimum=cast("float | None", field.get("minimum")),
        maximum=cast("float | None", field.get("maximum")),
        choices=choices,
    )


def make_params(module: ModuleType, given: Mapping[str, Scalar]) -> object:
    """Return the annotator's `Params` with these values. Raises RequestError saying what is possible."""
    name, specs = read(module).name, {spec.name: spec for spec in describe(module)}
    for key in given:
        if key not in specs:
            near = get_close_matches(key, specs, n=3) or list(specs)
            known = f"It has: {', '.join(near)}." if near else "It has none."
            raise RequestError(f"The annotator {name!r} has no parameter {key!r}. {known}")
    try:
        return TypeAdapter(read(module).params).validate_python(dict(given))
    except ValidationError as error:
        wrong = sorted({str(detail["loc"][0]) for detail in error.errors() if detail["loc"]} & specs.keys())
        possible = "; ".join(
            f"{key} can be {specs[key].values}, and is {specs[key].default} by itself" for key in wrong
        )
        raise RequestError(
            f"The annotator {name!r} cannot do this. {describe_errors(error)}. {possible}".rstrip(" .") + "."
        ) from error


def annotate_at(
    module: ModuleType, image: Picture, params: object, resolution: int | None = None, back: bool = True
) -> Picture:
    """Return the drawing of `image` (h w 3), made with its short side at `resolution` pixels and brought back to h w.

    `resolution`: None annotates at the picture's own size. `back`: False leaves the drawing at that resolution, for a
    caller that fits it to a canvas in one step, as A1111 does. Raises BadImage.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise BadImage(
            f"An annotator was given {image.dtype} of shape {image.shape}; it takes uint8 RGB, (height, width, 3)."
        )
    annotator = read(module)
    if resolution is None or annotator.sizing == "own":
        return annotator.run(image, params)
    shown = resize_short_side(image, resolution)
    drawing = _padded(annotator, shown, params) if annotator.sizing == "padded" else annotator.run(shown, params)
    return resize_map(drawing, image.shape[1], image.shape[0]) if back else drawing


def _padded(annotator: Annotator, image: Picture, params: object) -> Picture:
    """Return the drawing of the picture (h w 3), which is shown padded with its edges to a multiple of 64."""
    height, width = image.shape[:2]
    shown = np.pad(image, ((0, -height % _PAD), (0, -width % _PAD), (0, 0)), mode="edge")
    return np.ascontiguousarray(annotator.run(shown, params)[:height, :width])


def find_a1111(module_name: str) -> ModuleType:
    """Return the annotator that answers to a name of A1111's ControlNet extension. Raises UnknownName."""
    modules = {alias: module for module in map(ANNOTATORS.load, ANNOTATORS) for alias in read(module).a1111_names}
    if module_name not in modules:
        raise UnknownName.of("weightless ControlNet module", module_name, modules)
    return modules[module_name]


def params_from_a1111(module: ModuleType, *thresholds: float) -> dict[str, Scalar]:
    """Return what A1111's threshold_a and threshold_b stand for; a value outside its slider is left out."""
    specs = {spec.name: spec for spec in describe(module)}
    params: dict[str, Scalar] = {}
    for name, value in zip(read(module).a1111_sliders, thresholds, strict=False):
        low, high = specs[name].minimum, specs[name].maximum
        if (low is None or value >= low) and (high is None or value <= high):
            params[name] = int(value) if specs[name].kind == "int" else float(value)
    return params
