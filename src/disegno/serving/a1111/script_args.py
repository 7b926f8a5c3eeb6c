"""The arguments of A1111's selectable scripts, in its order, with its labels, defaults and bounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from disegno.serving.a1111.coerce import Json, Kind, coerced, shortened
from disegno.serving.a1111.errors import Fault, WireError


@dataclass(frozen=True)
class Arg:
    """One argument. `choices`: the words that it may be; where it is a number too, that is a choice's place."""

    name: str
    label: str
    kind: Kind
    default: Json
    low: float | None = None
    high: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()

    def read(self, value: Json, number: int) -> Json:
        """Return a value of it, the default for null. Raises WireError naming the argument's place and name."""
        path = ("script_args", number, self.name)
        if value is None:
            return self.default
        if not self.choices or self.kind == "list":
            return coerced(value, self.kind, path, self.low, self.high)
        words = {choice.lower(): choice for choice in self.choices}
        if isinstance(value, str) and value.strip().lower() in words:
            return words[value.strip().lower()]
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.choices):
            return self.choices[value]
        raise WireError.of_fields(Fault(path, f"permitted: {', '.join(self.choices)} (given: {shortened(value)})"))


FILLED = ("fill", "original", "latent noise", "latent nothing")
SIDES = ("left", "right", "up", "down")

ARGS: Mapping[str, tuple[Arg, ...]] = {
    "prompt matrix": (
        Arg("put_at_start", "Put variable parts at start of prompt", "bool", False),
        Arg("different_seeds", "Use different seed for each picture", "bool", False),
        Arg("prompt_type", "Select prompt", "str", "positive", choices=("positive", "negative")),
        Arg("variations_delimiter", "Select joining char", "str", "comma", choices=("comma", "space")),
        Arg("margin_size", "Grid margins (px)", "int", 0, 0, 500, 2),
    ),
    "prompts from file or textbox": (
        Arg("checkbox_iterate", "Iterate seed every line", "bool", False),
        Arg("checkbox_iterate_batch", "Use same random seed for all lines", "bool", False),
        Arg("prompt_position", "Insert prompts at the", "str", "start", choices=("start", "end")),
        Arg("prompt_txt", "List of prompt inputs", "str", ""),
    ),
    "loopback": (
        Arg("loops", "Loops", "int", 4, 1, 32, 1),
        Arg("final_denoising_strength", "Final denoising strength", "float", 0.5, 0, 1, 0.01),
        Arg("denoising_curve", "Denoising strength curve", "str", "Linear", choices=("Aggressive", "Linear", "Lazy")),
        Arg(
            "append_interrogation",
            "Append interrogated prompt at each iteration",
            "str",
            "None",
            choices=("None", "CLIP"),
        ),
    ),
    "sd upscale": (
        Arg("info", "Info", "any", ""),
        Arg("overlap", "Tile overlap", "int", 64, 0, 256, 16),
        Arg("upscaler_index", "Upscaler", "any", 0),
        Arg("scale_factor", "Scale Factor", "float", 2.0, 1.0, 4.0, 0.05),
    ),
    "poor man's outpainting": (
        Arg("pixels", "Pixels to expand", "int", 128, 8, 256, 8),
        Arg("mask_blur", "Mask blur", "int", 4, 0, 64, 1),
        Arg("inpainting_fill", "Masked content", "str", "fill", choices=FILLED),
        Arg("direction", "Outpainting direction", "list", list(SIDES), choices=SIDES),
    ),
}
"""By the scripts' titles in lower case."""


def read_args(title: str, args: Sequence[Json]) -> dict[str, Json]:
    """Return the arguments of a script by their names, the defaults for those that are missing. Raises WireError."""
    table = ARGS[title]
    return {arg.name: arg.read(args[i] if i < len(args) else None, i) for i, arg in enumerate(table)}


def rows_of(title: str) -> list[dict[str, Json]]:
    """Return a script's arguments as GET /sdapi/v1/script-info tells them."""
    return [
        {
            "label": arg.label,
            "value": arg.default,
            "minimum": arg.low,
            "maximum": arg.high,
            "step": arg.step,
            "choices": list(arg.choices) or None,
        }
        for arg in ARGS.get(title, ())
    ]
