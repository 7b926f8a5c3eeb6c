"""A1111's scripts that make many pictures of one request: X/Y/Z plot and Prompt matrix, as cells of a plan.

A cell is a body with some of its fields changed, so that whatever a field means alone it means in a plot too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from math import prod

from disegno.core.plot import listed, spread
from disegno.serving.a1111.coerce import Json, coerced, shortened
from disegno.serving.a1111.errors import Fault, WireError
from disegno.serving.a1111.script_args import read_args
from disegno.serving.a1111.series import SERIES

Body = Mapping[str, Json]
Change = Callable[[Body, str, str], dict[str, Json]]  # body, value, the axis's first value -> the changed fields

MAX_CELLS = 64


@dataclass(frozen=True)
class Axis:
    """An axis's label, how its values are written, and what one of them changes in a body."""

    label: str
    kind: str  # int, float, str, bool, orders
    change: Change


@dataclass(frozen=True)
class Cell:
    """One picture of a plot: the body that makes it, and its place and labels along each axis."""

    body: Body
    place: tuple[int, int, int]


@dataclass(frozen=True)
class Plot:
    """A plan of pictures: its cells in drawing order, and the labels of each axis (x, y, z)."""

    title: str
    labels: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    cells: tuple[Cell, ...]
    legend: bool = True
    lone_images: bool = False
    sub_grids: bool = False
    margin_px: int = 0


def _sets(name: str) -> Change:
    return lambda body, value, first: {name: value}


def _setting(name: str) -> Change:
    def change(body: Body, value: str, first: str) -> dict[str, Json]:
        settings = body.get("override_settings")
        return {"override_settings": {**(settings if isinstance(settings, dict) else {}), name: value}}

    return change


def _replaces(body: Body, value: str, first: str) -> dict[str, Json]:
    texts = {name: str(body.get(name) or "") for name in ("prompt", "negative_prompt")}
    if not any(first in text for text in texts.values()):
        raise WireError(f"Prompt S/R did not find {shortened(first)} in prompt or negative prompt.")
    return {name: text.replace(first, value) for name, text in texts.items()}


def _orders(body: Body, value: str, first: str) -> dict[str, Json]:
    """Return the prompt with the words of `value` put in its order where they stand (A1111's Prompt order)."""
    words, prompt = value.split("\n"), str(body.get("prompt") or "")
    missing = [word for word in words if word not in prompt]
    if missing:
        raise WireError(f"Prompt order did not find {shortened(missing[0])} in the prompt.")
    places = sorted((prompt.index(word), word) for word in words)
    out, end = "", 0
    for (at, word), new in zip(places, words, strict=True):
        out += prompt[end:at] + new
        end = at + len(word)
    return {"prompt": out + prompt[end:]}


def _size(body: Body, value: str, first: str) -> dict[str, Json]:
    width, _, height = value.lower().replace("×", "x").partition("x")
    return {"width": width.strip(), "height": height.strip()}


_TXT2IMG, _IMG2IMG = ("txt2img",), ("img2img",)
_BOTH = (*_TXT2IMG, *_IMG2IMG)
# A1111 parity: an axis is named by its place in this list, where only those of the form count. None: not built in.
_AXES: tuple[tuple[str, str, Change | None, tuple[str, ...]], ...] = (
    ("Nothing", "str", lambda body, value, first: {}, _BOTH),
    ("Seed", "int", _sets("seed"), _BOTH),
    ("Var. seed", "int", _sets("subseed"), _BOTH),
    ("Var. strength", "float", _sets("subseed_strength"), _BOTH),
    ("Steps", "int", _sets("steps"), _BOTH),
    ("Hires steps", "int", _sets("hr_second_pass_steps"), _TXT2IMG),
    ("CFG Scale", "float", _sets("cfg_scale"), _BOTH),
    ("Image CFG Scale", "float", _sets("image_cfg_scale"), _IMG2IMG),
    ("Prompt S/R", "str", _replaces, _BOTH),
    ("Prompt order", "orders", _orders, _BOTH),
    ("Sampler", "str", _sets("sampler_name"), _TXT2IMG),
    ("Hires sampler", "str", _sets("hr_sampler_name"), _TXT2IMG),
    ("Sampler", "str", _sets("sampler_name"), _IMG2IMG),
    ("Checkpoint name", "str", _setting("sd_model_checkpoint"), _BOTH),
    ("Negative Guidance minimum sigma", "float", _sets("s_min_uncond"), _BOTH),
    ("Sigma Churn", "float", _sets("s_churn"), _BOTH),
    ("Sigma min", "float", _sets("s_tmin"), _BOTH),
    ("Sigma max", "float", _sets("s_tmax"), _BOTH),
    ("Sigma noise", "float", _sets("s_noise"), _BOTH),
    ("Schedule type", "str", _sets("scheduler"), _BOTH),
    ("Schedule min sigma", "float", None, _BOTH),
    ("Schedule max sigma", "float", None, _BOTH),
    ("Schedule rho", "float", None, _BOTH),
    ("Beta schedule alpha", "float", None, _BOTH),
    ("Beta schedule beta", "float", None, _BOTH),
    ("Eta", "float", _sets("eta"), _BOTH),
    ("Clip skip", "int", _setting("CLIP_stop_at_last_layers"), _BOTH),
    ("Denoising", "float", _sets("denoising_strength"), _BOTH),
    ("Initial noise multiplier", "float", _setting("initial_noise_multiplier"), _BOTH),
    ("Extra noise", "float", _setting("img2img_extra_noise"), _BOTH),
    ("Hires upscaler", "str", _sets("hr_upscaler"), _TXT2IMG),
    ("Cond. Image Mask Weight", "float", _setting("inpainting_mask_weight"), _IMG2IMG),
    ("VAE", "str", _setting("sd_vae"), _BOTH),
    ("Styles", "str", lambda body, value, first: {"styles": [value]}, _BOTH),
    ("UniPC Order", "int", None, _BOTH),
    ("Face restore", "str", None, _BOTH),
    ("Token merging ratio", "float", None, _BOTH),
    ("Token merging ratio high-res", "float", None, _BOTH),
    ("Always discard next-to-last sigma", "bool", None, _BOTH),
    ("SGM noise multiplier", "bool", None, _BOTH),
    ("Refiner checkpoint", "str", _sets("refiner_checkpoint"), _BOTH),
    ("Refiner switch at", "float", _sets("refiner_switch_at"), _BOTH),
    ("RNG source", "str", _setting("randn_source"), _BOTH),
    ("FP8 mode", "str", None, _BOTH),
    ("Size", "str", _size, _BOTH),
)


def axes(form: str) -> list[Axis]:
    """Return the axes of a form in A1111's order; those that are not built in refuse their values."""
    return [Axis(label, kind, change or _not_built_in(label)) for label, kind, change, forms in _AXES if form in forms]


def _not_built_in(label: str) -> Change:
    def change(body: Body, value: str, first: str) -> dict[str, Json]:
        raise WireError(f"The axis {label!r} is not built in here.")

    return change


def _axis(form: str, given: Json, number: int) -> Axis:
    """Return the axis of a number, as the API names it, or of a label."""
    known = axes(form)
    by_label = {axis.label.lower(): axis for axis in known}
    if isinstance(given, str) and not given.isdigit():
        if given.strip().lower() in by_label:
            return by_label[given.strip().lower()]
    elif (place := coerced(given, "int", ("script_args", number))) is None:
        return known[0]
    elif isinstance(place, int) and 0 <= place < len(known):
        return known[place]
    labels = ", ".join(axis.label for axis in known)
    raise WireError.of_fields(Fault(("script_args", number), f"no such axis ({shortened(given)}). Known: {labels}"))


def values_of(axis: Axis, given: Json, dropped: Json) -> list[str]:
    """Return an axis's values from its text ("1, 2, 3", "1-10 (+2)"), or from the list of its drop-down.

    Raises WireError, RequestError.
    """
    if axis.label == "Nothing":
        return [""]
    if not given and isinstance(dropped, list):
        parts = [str(value) for value in dropped]
    else:
        parts = listed(str(given if given is not None else "")[:20000])
    parts = [part for part in parts if part != ""] or [""]
    if axis.kind == "orders":
        if len(parts) > 5:
            raise WireError("Prompt order of more than 5 words has more than 64 orders.")
        return ["\n".join(order) for order in permutations(parts)]
    if axis.kind in ("int", "float"):
        return list(spread(parts, axis.kind == "int"))
    return parts


_XYZ_ARGS: tuple[tuple[str, Json], ...] = (
    *((f"{axis}_{part}", default) for axis in "xyz" for part, default in (("type", 0), ("values", ""), ("list", []))),
    ("draw_legend", True),
    ("include_lone_images", False),
    ("include_sub_grids", False),
    ("no_fixed_seeds", False),
    *((f"vary_seeds_{axis}", False) for axis in "xyz"),
    ("margin_size", 0),
    ("csv_mode", False),
)


@dataclass(frozen=True)
class Seeds:
    """How a plot's seeds are drawn, and what the request said of its own: -1 is any."""

    draw: Callable[[], int]
    asked: Mapping[str, Json]

    def of_axis(self, axis: Axis, values: Sequence[str]) -> list[str]:
        """Return the values of an axis, with a seed in the place of -1: one for all of its row or column."""
        if axis.label not in ("Seed", "Var. seed"):
            return list(values)
        return [str(self.draw()) if value in ("-1", "") else value for value in values]


def _xyz(form: str, body: Body, args: Sequence[Json], seeds: Seeds) -> Plot:
    """Return the plot of script "X/Y/Z plot"; its arguments stand in A1111's order."""
    given = dict(_XYZ_ARGS)
    given |= {name: value for (name, _), value in zip(_XYZ_ARGS, args, strict=False) if value is not None}
    chosen = [_axis(form, given[f"{axis}_type"], i * 3) for i, axis in enumerate("xyz")]
    values = [values_of(axis, given[f"{n}_values"], given[f"{n}_list"]) for axis, n in zip(chosen, "xyz", strict=True)]
    if prod(map(len, values)) > MAX_CELLS:
        raise WireError(f"The plot has {prod(map(len, values))} cells; at most {MAX_CELLS} are possible at once.")
    flags = [name for name, default in _XYZ_ARGS if isinstance(default, bool)]
    flag = {name: bool(coerced(given[name], "bool", ("script_args", name))) for name in flags}
    if flag["no_fixed_seeds"]:
        body = {**body, **seeds.asked}
    else:
        values = [seeds.of_axis(axis, row) for axis, row in zip(chosen, values, strict=True)]
    cells = tuple(_xyz_cells(body, chosen, values, [flag[f"vary_seeds_{n}"] for n in "xyz"]))
    labels = [tuple(_label(axis, value) for value in row) for axis, row in zip(chosen, values, strict=True)]
    margin = coerced(given["margin_size"], "int", ("script_args", "margin_size"), 0, 500)
    return Plot(
        "X/Y/Z plot",
        (labels[0], labels[1], labels[2]),
        cells,
        flag["draw_legend"],
        flag["include_lone_images"],
        flag["include_sub_grids"],
        margin if isinstance(margin, int) else 0,
    )


def _xyz_cells(
    body: Body, chosen: Sequence[Axis], values: Sequence[Sequence[str]], vary: Sequence[bool]
) -> Iterator[Cell]:
    sizes = [len(row) for row in values]
    for z, y, x in product(*(range(size) for size in reversed(sizes))):
        place, cell = (x, y, z), dict(body)
        for axis, row, i in zip(chosen, values, place, strict=True):
            cell |= axis.change(cell, row[i], row[0])
        seed = cell.get("seed")
        if any(vary) and isinstance(seed, int):
            cell["seed"] = seed + _offset(place, sizes, vary)
        yield Cell(cell, place)


def _offset(place: Sequence[int], sizes: Sequence[int], vary: Sequence[bool]) -> int:
    """Return how far a cell's seed is counted up along the axes that vary it."""
    offset, scale = 0, 1
    for i, size, varies in zip(place, sizes, vary, strict=True):
        if varies:
            offset, scale = offset + i * scale, scale * size
    return offset


def _label(axis: Axis, value: str) -> str:
    if axis.label in ("Nothing", "Prompt S/R", "Prompt order", "Checkpoint name", "Size"):
        return value.replace("\n", ", ")
    return f"{axis.label}: {value}"


def _matrix(form: str, body: Body, args: Sequence[Json], seeds: Seeds) -> Plot:
    """Return the plot of script "Prompt matrix": every combination of the parts behind the first | of a prompt."""
    given = read_args("prompt matrix", args)
    name = "negative_prompt" if given["prompt_type"] == "negative" else "prompt"
    base, *parts = [part.strip() for part in str(body.get(name) or "").split("|")]
    if 2 ** len(parts) > MAX_CELLS:
        raise WireError(f"A prompt matrix of {len(parts)} parts has more than {MAX_CELLS} pictures.")
    joint = " " if given["variations_delimiter"] == "space" else ", "
    half = (len(parts) + 1) // 2
    cells: list[Cell] = []
    for number in range(2 ** len(parts)):
        chosen = [part for i, part in enumerate(parts) if number >> i & 1]
        text = joint.join([*chosen, base] if given["put_at_start"] else [base, *chosen])
        change: dict[str, Json] = {name: text}
        if given["different_seeds"] and isinstance(seed := body.get("seed"), int):
            change["seed"] = seed + number
        cells.append(Cell({**body, **change}, (number % 2**half, number >> half, 0)))
    labels = (_combinations(parts[:half]), _combinations(parts[half:]), ("",))
    margin = given["margin_size"]
    return Plot(
        "Prompt matrix", labels, tuple(cells), lone_images=True, margin_px=margin if isinstance(margin, int) else 0
    )


def _combinations(parts: Sequence[str]) -> tuple[str, ...]:
    chosen = ([part for i, part in enumerate(parts) if n >> i & 1] for n in range(2 ** len(parts)))
    return tuple(", ".join(row) or "-" for row in chosen) if parts else ("",)


SCRIPTS: Mapping[str, Callable[[str, Body, Sequence[Json], Seeds], Plot]] = {
    "x/y/z plot": _xyz,
    "prompt matrix": _matrix,
}
"""The scripts that make a plot, by their titles in lower case."""


def find_plot(form: str, name: str, body: Body, args: Sequence[Json], seeds: Seeds) -> Plot | None:
    """Return the plot that a script makes of a body, whose seeds are drawn; None without a script. Raises WireError."""
    if not name.strip() or name.strip().lower() == "none":
        return None
    make = SCRIPTS.get(name.strip().lower())
    if make is None:
        raise WireError(f"Script {shortened(name)} not found. Selectable here: {', '.join(titles(form))}.")
    bare = {key: value for key, value in body.items() if key not in ("script_name", "script_args")}
    return make(form, bare, args, seeds)


def titles(form: str) -> list[str]:
    """Return the titles of the selectable scripts that a form has, in lower case."""
    return [*SCRIPTS, *(title for title, (_, forms) in SERIES.items() if form in forms)]
