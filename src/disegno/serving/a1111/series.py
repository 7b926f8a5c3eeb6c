"""A1111's scripts that draw one picture after the other: Loopback, SD upscale, Prompts from file, outpainting.

Each is a series of drawings, and a drawing is a body, as of a request without a script, with some of our Request's
fields over what it is translated into.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from disegno.core.errors import BadImage, RequestError
from disegno.core.infotext import FILLS
from disegno.core.loopback import CURVES, LoopCurve, Loops, loop_denoises
from disegno.engine.pictures import Limits, bytes_of, size_of
from disegno.serving.a1111.coerce import Json, shortened
from disegno.serving.a1111.errors import Fault, WireError
from disegno.serving.a1111.forms import FILL
from disegno.serving.a1111.images import read_image
from disegno.serving.a1111.script_args import ARGS, FILLED, TARGETS, read_args

Body = Mapping[str, Json]


@dataclass(frozen=True)
class Asked:
    """What a script is asked with: the body, its own arguments, and what the form says without a script.

    `seed`, `subseed`: drawn, where the body leaves them open; `is_seeded`: it says the seed. `steps`: those that are
    done of a picture that is changed. `denoise`, `num` and `batch`: with the form's defaults. `size`: width and height,
    where the form gives both. `upscalers`: of pixels, in the lists' order.
    """

    body: Body
    args: Mapping[str, Json]
    seed: int
    subseed: int
    is_seeded: bool
    steps: int
    denoise: float
    num: int
    batch: int
    size: tuple[int, int] | None = None
    upscalers: Sequence[str] = ()

    def number(self, name: str) -> float:
        """Return a numeric argument."""
        value = self.args[name]
        return value if isinstance(value, int | float) else 0

    def with_seed(self, more: int = 0) -> dict[str, Json]:
        """Return the body with this many added to its seed."""
        return {**self.body, "seed": self.seed + more, "subseed": self.subseed}


@dataclass(frozen=True)
class Turn:
    """One drawing of a series. `fields`: of our Request, over what its body is translated into.

    `told`: entries of its text, over its own; null leaves one out. `follows`: it changes what the one before it drew.
    `kept`: its picture is in the answer. `described`: what is seen in the picture that it changes is said behind its
    prompt.
    """

    body: Body
    fields: Mapping[str, object] = field(default_factory=dict[str, object])
    told: Mapping[str, Json] = field(default_factory=dict[str, Json])
    follows: bool = False
    kept: bool = True
    described: bool = False


@dataclass(frozen=True)
class Series:
    """The drawings of a script, in their order, and what is reported. `with_row`: a row of them stands before them."""

    turns: tuple[Turn, ...]
    with_row: bool = False
    warnings: tuple[str, ...] = ()


# ---- Loopback


def _loopback(asked: Asked) -> Series:
    """Return each picture drawn from the one before it; of several iterations, each one's last."""
    loops, last = int(asked.number("loops")), asked.number("final_denoising_strength")
    curves: Mapping[str, LoopCurve] = {known.title(): known for known in CURVES}
    curve = curves[str(asked.args["denoising_curve"])]
    shares = loop_denoises(asked.denoise, Loops(loops, last, curve))
    told: dict[str, Json] = {"Final denoising strength": last, "Denoising curve": curve.title()}
    turns = [
        Turn(
            {
                **asked.with_seed(iteration * loops + loop),
                "n_iter": 1,
                "batch_size": 1,
                "denoising_strength": share,
                **({"inpainting_fill": FILL.index("original")} if loop else {}),
            },
            told=told,
            follows=loop > 0,
            kept=asked.num == 1 or loop == loops - 1,
            described=asked.args["append_interrogation"] == "CLIP",
        )
        for iteration in range(asked.num)
        for loop, share in enumerate(shares)
    ]
    return Series(tuple(turns), with_row=True)


# ---- tiles


def _tiles(asked: Asked, overlap_px: int) -> dict[str, object]:
    """Return tiles of the form's size, square ones; the model's own where it gives none."""
    if asked.size is None:
        return {"tiles.size": None}
    tile = min(asked.size) // 8 * 8
    return {"tiles.size": tile, "tiles.overlap": min(overlap_px / tile, 0.75)}


# ---- SD upscale


def _sd_upscale(asked: Asked) -> Series:
    """Return the picture enlarged and drawn over in tiles of the form's size, which are one picture at every step.

    A1111 draws each tile by itself, and blends them when they are done.
    """
    name, overlap = _upscaler(asked, 2), int(asked.number("overlap"))
    fields: dict[str, object] = {
        **dict(zip(("width", "height"), _size_of_picture(asked), strict=True)),
        "init.denoise": 0.0,
        "hires.denoise": asked.denoise,
        "hires.scale": 1.0 if name == "None" else asked.number("scale_factor"),
        "hires.upscaler": "Lanczos" if name == "None" else name,
        "hires.steps": asked.steps,
        **_tiles(asked, overlap),
    }
    told: dict[str, Json] = {
        **dict.fromkeys(("Hires upscale", "Hires steps", "Hires upscaler")),
        **({} if asked.size is None else {"Size": f"{asked.size[0]}x{asked.size[1]}"}),
        "Denoising strength": asked.denoise,
        "SD upscale overlap": overlap,
        "SD upscale upscaler": name,
    }
    return Series((Turn({**asked.with_seed(), "batch_size": 1}, fields, told),))


def _upscaler(asked: Asked, place: int) -> str:
    """Return the upscaler that is named, or meant by its place in the list. `place`: of the argument."""
    given, known = asked.args["upscaler_index"], {name.lower(): name for name in asked.upscalers}
    if isinstance(given, str) and given.strip().lower() in known:
        return known[given.strip().lower()]
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(asked.upscalers):
        return asked.upscalers[given]
    text = f"no such upscaler ({shortened(given)}). Known: {', '.join(asked.upscalers)}"
    raise WireError.of_fields(Fault(("script_args", place, "upscaler_index"), text))


def _size_of_picture(asked: Asked) -> tuple[int, int]:
    """Return width and height of the picture that is changed, in pixels, whole 8s, 64 at least. Raises WireError."""
    images = asked.body.get("init_images")
    image = read_image(images[0], ("init_images", 0)) if isinstance(images, list) and images else None
    if image is None:
        raise WireError("Init image not found", 404)
    if not image.startswith("data:"):
        raise WireError("This script must know how large the picture is: send the picture, not its address.")
    try:
        width, height = size_of(*bytes_of(image, Limits(paths=False)))
    except BadImage as error:
        raise WireError.of_fields(Fault(("init_images", 0), str(error))) from None
    return max(64, width // 8 * 8), max(64, height // 8 * 8)


# ---- Ultimate SD upscale

_ULTIMATE = "ultimate sd upscale"


def _ultimate(asked: Asked) -> Series:
    """Return the picture enlarged and drawn over in square tiles, which are one picture at every step.

    The extension draws each tile by itself into the picture, and then over their seams where that is asked.
    """
    sides = [int(side) for name in ("tile_width", "tile_height") if (side := asked.number(name)) > 0]
    if not sides:
        raise WireError("Ultimate SD upscale wants tiles: tile_width or tile_height, in pixels.")
    name, padding, tile = _upscaler(asked, 8), int(asked.number("padding")), max(64, min(sides) // 8 * 8)
    own, target = _size_of_picture(asked), _target(asked)
    final = (target["hires.width"], target["hires.height"]) if "hires.width" in target else _scaled(asked, own)
    denoise = 0.0 if asked.args["redraw_mode"] == "None" else asked.denoise
    fields: dict[str, object] = {
        "width": own[0],
        "height": own[1],
        "init.denoise": 0.0,
        "hires.denoise": denoise,
        **target,
        "hires.upscaler": "Lanczos" if name == "None" else name,
        "hires.steps": asked.steps,
        "tiles.size": tile,
        "tiles.overlap": min(padding / tile, 0.75),
    }
    told: dict[str, Json] = {
        **dict.fromkeys(("Hires upscale", "Hires resize", "Hires steps", "Hires upscaler")),
        "Size": f"{final[0]}x{final[1]}",
        "Denoising strength": denoise,
        "Ultimate SD upscale upscaler": name,
        "Ultimate SD upscale tile_width": int(asked.number("tile_width")) or sides[0],
        "Ultimate SD upscale tile_height": int(asked.number("tile_height")) or sides[0],
        "Ultimate SD upscale mask_blur": int(asked.number("mask_blur")),
        "Ultimate SD upscale padding": padding,
    }
    seams = "Ultimate SD upscale: there are no seams to fix, the tiles are one picture at every step."
    fixes = asked.args["seams_fix_type"] != "None"
    turn = Turn({**asked.with_seed(), "n_iter": 1, "batch_size": 1}, fields, told)
    return Series((turn,), warnings=(seams,) if fixes else ())


def _target(asked: Asked) -> dict[str, float]:
    """Return what the picture becomes: a size, which it covers, or how many times as large."""
    kind = TARGETS.index(str(asked.args["target_size_type"]))
    if kind == 2:
        return {"hires.scale": asked.number("custom_scale")}
    sides = (int(asked.number("custom_width")), int(asked.number("custom_height"))) if kind else asked.size
    if sides is None:
        raise WireError("Ultimate SD upscale of this target_size_type wants width and height.")
    return {"hires.width": sides[0] // 8 * 8, "hires.height": sides[1] // 8 * 8}


def _scaled(asked: Asked, own: tuple[int, int]) -> tuple[int, int]:
    scale = asked.number("custom_scale")
    return int(own[0] * scale), int(own[1] * scale)


# ---- Poor man's outpainting


def _outpainting(asked: Asked) -> Series:
    """Return the picture grown to a canvas of whole 64s, in tiles of the form's size, which are one at every step.

    A1111 draws each tile by itself, and blends them when they are done.
    """
    pixels, sides = int(asked.number("pixels")) // 8 * 8, asked.args["direction"]
    named = {str(side).strip().lower() for side in sides} if isinstance(sides, list) else set[str]()
    grow = {side: pixels if side in named else 0 for side in ("left", "right", "up", "down")}
    if not any(grow.values()):
        raise WireError("Poor man's outpainting wants at least one direction: left, right, up or down.")
    width, height = _size_of_picture(asked)
    left, right, width = _grown(width, grow["left"], grow["right"])
    top, bottom, height = _grown(height, grow["up"], grow["down"])
    soft, fill = 2 * int(asked.number("mask_blur")), FILL[FILLED.index(str(asked.args["inpainting_fill"]))]
    fields: dict[str, object] = {
        "width": width,
        "height": height,
        "init.fill": fill,
        "init.mask_blur": soft,
        "init.outpaint.left": left,
        "init.outpaint.right": right,
        "init.outpaint.top": top,
        "init.outpaint.bottom": bottom,
        **_tiles(asked, pixels),
    }
    told: dict[str, Json] = {"Mask blur": soft or None, "Masked content": None if fill == "original" else FILLS[fill]}
    return Series((Turn({**asked.with_seed(), "n_iter": 1, "batch_size": 1, "mask": None}, fields, told),))


def _grown(length: int, before: int, after: int) -> tuple[int, int, int]:
    """Return what is added on both sides and the whole, a multiple of 64 where it grows. A1111 parity: each its share.

    Where it does not grow it stays: A1111 makes it a multiple of 64 too, and leaves what is added unmasked.
    """
    if not before + after:
        return 0, 0, length
    whole = -(-(length + before + after) // 64) * 64
    first = before * (whole - length) // (before + after) // 8 * 8
    return first, whole - length - first, whole


# ---- Prompts from file or textbox

_TEXTS = ("prompt", "negative_prompt")
_OPTIONS = (
    *("sd_model", "styles", "seed", "subseed", "subseed_strength", "seed_resize_from_h", "seed_resize_from_w"),
    *("sampler_index", "sampler_name", "batch_size", "n_iter", "steps", "cfg_scale", "width", "height"),
    *("restore_faces", "tiling", "do_not_save_samples", "do_not_save_grid"),
    *("outpath_samples", "outpath_grids", "prompt_for_display"),
)
_OF_FILES = ("outpath_samples", "outpath_grids", "prompt_for_display")  # of A1111's own files and page


def _prompts(asked: Asked) -> Series:
    """Return a drawing for each line: a prompt, or options that begin with --."""
    lines = [line.strip() for line in str(asked.args["prompt_txt"]).splitlines() if line.strip()]
    if not lines:
        raise WireError("Prompts from file or textbox: there is no line of text to draw.")
    one_seed = asked.is_seeded or bool(asked.args["checkbox_iterate"]) or bool(asked.args["checkbox_iterate_batch"])
    more = asked.batch * asked.num if asked.args["checkbox_iterate"] else 0
    turns = [
        Turn(_of_line(line, number, asked.with_seed(number * more) if one_seed else asked.body, asked))
        for number, line in enumerate(lines)
    ]
    return Series(tuple(turns))


def _of_line(line: str, number: int, body: Body, asked: Asked) -> Body:
    """Return the body with what a line says. A1111 parity: its prompts stand before or behind the form's."""
    said = dict(_options(line, number)) if line.startswith("--") else {"prompt": line}
    changed: dict[str, Json] = {**body, **said}
    for name in _TEXTS:
        own, form = said.get(name), body.get(name)
        if own and form:
            changed[name] = f"{own} {form}" if asked.args["prompt_position"] == "start" else f"{form} {own}"
    if "styles" in said:
        changed["styles"] = [said["styles"]]
    if (model := changed.pop("sd_model", None)) is not None:
        settings = body.get("override_settings")
        changed["override_settings"] = {
            **(settings if isinstance(settings, dict) else {}),
            "sd_model_checkpoint": model,
        }
    return changed


def _options(line: str, number: int) -> Iterator[tuple[str, Json]]:
    """Yield the options of a line; a prompt goes on to the next one. Raises WireError, where A1111 draws the line."""
    where = f"Prompts from file or textbox, line {number + 1}: "
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise WireError(f"{where}{error}. Close the quotes, or begin the line with a word.") from None
    while words:
        name = words.pop(0).removeprefix("--")
        if name not in (*_TEXTS, *_OPTIONS):
            known = ", ".join(f"--{option}" for option in (*_TEXTS, *_OPTIONS))
            raise WireError(f"{where}{shortened(name)} is no option. Known: {known}.")
        if not words:
            raise WireError(f"{where}--{name} has no value.")
        value = [words.pop(0)]
        while name in _TEXTS and words and not words[0].startswith("--"):
            value.append(words.pop(0))
        if name not in _OF_FILES:
            yield name, " ".join(value)


# ---- all


SERIES: Mapping[str, tuple[Callable[[Asked], Series], tuple[str, ...]]] = {
    "prompts from file or textbox": (_prompts, ("txt2img", "img2img")),
    "loopback": (_loopback, ("img2img",)),
    "sd upscale": (_sd_upscale, ("img2img",)),
    _ULTIMATE: (_ultimate, ("img2img",)),
    "poor man's outpainting": (_outpainting, ("img2img",)),
}
"""The scripts and the forms that have them, by their titles in lower case."""


def make_series(title: str, asked: Asked, args: Sequence[Json]) -> Series:
    """Return the series of a script. `asked`: its arguments are read here. Raises WireError."""
    if title == "prompts from file or textbox" and len(args) == 3:  # before 1.7 there was no position
        args = (*args[:2], None, args[2])
    if title == _ULTIMATE and len(args) == len(ARGS[title]) - 1:  # in its first version tiles were square
        args = (*args[:2], 0, *args[2:])
    make, _ = SERIES[title]
    try:
        return make(replace(asked, args=read_args(title, args)))
    except RequestError as error:
        raise WireError(str(error)) from error
