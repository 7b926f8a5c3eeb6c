"""ControlNet units of A1111's extension, in every form that its clients send, as our ControlUnits.

    alwayson_scripts: {"ControlNet": {"args": [unit, ...]}}     any case of the name; {"args": unit} and [unit, ...] too
    controlnet_units: [unit, ...]                               of the routes that the extension has removed
    controlnet_image: [...], controlnet_module: ..., ...        of the same routes, in their oldest form

A unit that cannot be carried out is an error: upstream answers with a picture that was not controlled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from disegno.core.errors import BadImage, RequestError, UnknownName
from disegno.core.request import ControlMode, ControlPass, ResizeMode
from disegno.engine.album import INPAINT
from disegno.engine.pictures import Limits, bytes_of, decode
from disegno.serving.a1111.coerce import Json, coerced, shortened
from disegno.serving.a1111.errors import Fault, Path, WireError
from disegno.serving.a1111.fields import Field, Given, read_fields
from disegno.serving.a1111.house import Named, find_named
from disegno.serving.a1111.images import read_image
from disegno.serving.a1111.modules import KEEPS_THE_REST, SEEING, Module, find_module

MAX_UNITS = 10  # A1111 parity: the most that its setting control_net_unit_count allows
NUM_LAYERS = (13, 10, 4, 16, 11)  # of a ControlNet, of SDXL's, of a T2I-Adapter; transformers of SD 1.x, of SDXL
_MIDDLE = {16: 6, 11: 4}  # where the middle's is among transformers: A1111 counts them as a step calls them
HIDDEN = 0.5  # A1111 parity: what a threshold without a slider becomes
_EMPTY, _FULL = 5, 250  # A1111 parity: a mask that is nowhere brighter, or nowhere darker, says nothing

_UI_ONLY = "it belongs to the extension's own page"
_OTHER = "it belongs to a kind of control that is not built in"
UNIT = (
    Field("enabled", "bool", means="whether the unit acts; not given: whether it has an image or a model"),
    Field("module", "str", "none", means="`annotate`, by name or label; none takes the image as it is"),
    Field("model", "str", "None", means="`name`: the list's entry, its stem, or a part of it"),
    Field("weight", "float", 1.0, low=0.0, high=2.0, means="`strength`"),
    Field(
        "image",
        "any",
        means="`image`: base64, or with its mask as an object or a pair; of an IP-Adapter a list of such objects: their"
        " mean",
    ),
    Field("mask", "any", means="`mask`"),
    Field("resize_mode", "any", "Crop and Resize", means="`resize`, by label or number"),
    Field("processor_res", "float", -1, means="`resolution`; out of range is the module's own"),
    Field("threshold_a", "float", -1, means="the annotator's first parameter; out of range is its own"),
    Field("threshold_b", "float", -1, means="the annotator's second parameter; out of range is its own"),
    Field("guidance_start", "float", 0.0, low=0.0, high=1.0, means="`start`"),
    Field("guidance_end", "float", 1.0, low=0.0, high=1.0, means="`end`"),
    Field("pixel_perfect", "bool", False, means="the annotator sees the canvas's own resolution"),
    Field("control_mode", "any", "Balanced", means="`mode`, by label or number"),
    Field("inpaint_crop_input_image", "bool", True, means="`crop`"),
    Field("hr_option", "str", "Both", means="`passes`"),
    Field("save_detected_map", "bool", True, means="false: its map is not in the answer"),
    Field("advanced_weighting", "list", means="`layers`"),
    Field("effective_region_mask", "any", means="`region`"),
    Field("low_vram", "bool", False, unused="the program decides itself what is kept in memory"),
    Field("pulid_mode", "str", "Fidelity", unused=_OTHER),
    Field("union_control_type", "str", "Unknown", means="`task`, where a control knows several; Unknown: the module's"),
    Field("mix", "bool", False, means="`mix`, which the extension has not: one control of the mean of such units"),
    Field("ipadapter_input", "any", unused="what an IP-Adapter reads is computed here: send the picture"),
    Field("input_mode", "any", "simple", unused=_UI_ONLY),
    Field("use_preview_as_input", "any", unused=_UI_ONLY, off=(False,)),
    Field("generated_image", "any", unused=_UI_ONLY, off=("",)),
    Field("is_ui", "any", unused=_UI_ONLY, off=(False,)),
    Field("batch_images", "any", unused=_UI_ONLY, off=("", [])),
    Field("batch_input_gallery", "any", unused=_UI_ONLY, off=("", [])),
    Field("batch_mask_gallery", "any", unused=_UI_ONLY, off=("", [])),
    Field("output_dir", "any", unused=_UI_ONLY, off=("",)),
    Field("loopback", "any", unused=_UI_ONLY, off=(False,)),
)
ALIASES: Mapping[str, str] = {
    "input_image": "image",
    "mask_image": "mask",
    "lowvram": "low_vram",
    "guidance": "guidance_end",
}
_DEFAULTS: Mapping[str, Json] = {row.name: row.default for row in UNIT}
_LEGACY = tuple(row.name for row in UNIT) + tuple(ALIASES)  # each with controlnet_ before it
_LEGACY_NAMES = ("guess_mode", "guessmode")

RESIZE: Mapping[str, tuple[ResizeMode, str]] = {
    "just resize": ("stretch", "Just Resize"),
    "just resize (latent upscale)": ("stretch", "Just Resize"),
    "crop and resize": ("crop", "Crop and Resize"),
    "inner fit (scale to fit)": ("crop", "Crop and Resize"),
    "scale to fit (inner fit)": ("crop", "Crop and Resize"),
    "resize and fill": ("fill", "Resize and Fill"),
    "outer fit (shrink to fit)": ("fill", "Resize and Fill"),
    "envelope (outer fit)": ("fill", "Resize and Fill"),
}
_RESIZE_NUMBERS = ("just resize", "crop and resize", "resize and fill", "just resize (latent upscale)")
MODES: Mapping[str, tuple[ControlMode, str]] = {
    "balanced": ("balanced", "Balanced"),
    "my prompt is more important": ("prompt", "My prompt is more important"),
    "controlnet is more important": ("control", "ControlNet is more important"),
}
_SOFT, _HARD = ("hed", "scribble"), ("canny", "line-art", "straight-lines")
TASKS: Mapping[str, tuple[str, ...]] = {
    "openpose": ("openpose",),
    "depth": ("depth",),
    "soft edge": _SOFT,
    "hard edge": _HARD,
    "normal map": ("normal",),
    "segmentation": ("seg",),
    "tile": ("blur",),
    "inpaint": ("inpainting",),
    # as ComfyUI calls them
    "hed/pidi/scribble/ted": _SOFT,
    "canny/lineart/anime_lineart/mlsd": _HARD,
    "segment": ("seg",),
    "repaint": ("inpainting",),
}
PASSES: Mapping[str, ControlPass] = {"both": "both", "low res only": "first", "high res only": "hires"}


@dataclass(frozen=True)
class Unit:
    """A unit, translated: the fields of a ControlUnit, whether its map is shown, and its text in the infotext.

    `beside`: the fields of another one, which the module is beside the model's.
    """

    fields: Mapping[str, object]
    shown: bool
    text: str
    warnings: tuple[str, ...]
    beside: Mapping[str, object] | None = None


def units_of(body: Mapping[str, Json]) -> tuple[list[Json], Path]:
    """Return the units of a body, untranslated, and where they stand; none where there are none. Raises WireError."""
    scripts = body.get("alwayson_scripts")
    if isinstance(scripts, dict):
        name = next((name for name in scripts if name.strip().lower() == "controlnet"), None)
        if name is not None and (units := _args(scripts[name], ("alwayson_scripts", name))):
            return units, ("alwayson_scripts", name, "args")
    if body.get("controlnet_units") is not None:
        return _listed(body["controlnet_units"], ("controlnet_units",)), ("controlnet_units",)
    return ([unit], ("controlnet",)) if (unit := _legacy(body)) else ([], ())


def parts_of(unit: Json) -> list[Json]:
    """Return the unit; where an IP-Adapter is given several images, a unit for each, to be mixed. A1111 parity."""
    images = unit.get("image") if isinstance(unit, dict) else None
    if not isinstance(unit, dict) or not isinstance(images, list) or not _sees(unit):
        return [unit]
    if not 2 <= len(images) <= MAX_UNITS:
        return [unit]
    if not all(isinstance(image, dict) for image in images) and len(images) == 2:
        return [unit]  # an image and its mask
    return [{**unit, "image": image, "mix": True} for image in images]


def _sees(unit: Mapping[str, Json]) -> bool:
    try:
        return find_module(str(unit.get("module") or "none")).known.name in SEEING
    except UnknownName:
        return False  # said when the unit is read


def _args(script: Json, at: Path) -> list[Json]:
    if isinstance(script, dict):
        return _listed(script.get("args", []), (*at, "args"))
    return _listed(script, at)


def _listed(units: Json, at: Path) -> list[Json]:
    listed = [units] if isinstance(units, dict) else units
    if not isinstance(listed, list):
        raise WireError.of_fields(Fault(at, f"units are a list (given: {shortened(units)})", "type_error.list"))
    given: list[Json] = [unit for unit in listed if unit is not None]
    if len(given) > MAX_UNITS:
        raise WireError.of_fields(Fault(at, f"at most {MAX_UNITS} units are possible (given: {len(given)})"))
    return given


def legacy_names() -> frozenset[str]:
    """Return the names of the oldest form, which are fields of a body and not unknown."""
    return frozenset({"controlnet_units", *(f"controlnet_{name}" for name in (*_LEGACY, *_LEGACY_NAMES))})


def _legacy(body: Mapping[str, Json]) -> dict[str, Json]:
    """Return the unit that controlnet_... fields describe; empty where there are none."""
    found = {name: body[f"controlnet_{name}"] for name in _LEGACY if body.get(f"controlnet_{name}") is not None}
    for name in ("input_image", "image", "mask"):  # there they were lists
        if isinstance(value := found.get(name), list):
            found[name] = value[0] if value else None
    if body.get("controlnet_guess_mode") or body.get("controlnet_guessmode"):
        found["control_mode"] = 2
    return {**found, "enabled": True} if any(found.get(name) for name in ("image", "input_image", "model")) else {}


def _renamed(unit: Mapping[str, Json], at: Path) -> dict[str, Json]:
    """Return the unit with its newest names.

    Clients of 2023 send the older name beside the newer one, with its default: that says nothing. Raises WireError
    where both names say something, and not the same.
    """
    out = {name: value for name, value in unit.items() if name not in ALIASES}
    for old, new in ALIASES.items():
        if unit.get(old) in (None, ""):
            continue
        if unit.get(new) not in (None, ""):
            if unit[old] in (unit[new], _DEFAULTS[new]):
                continue
            raise WireError.of_fields(Fault((*at, old), f"{old} and {new} are the same field: give one of them"))
        out[new] = unit[old]
    return out


def is_enabled(given: Given) -> bool:
    """Return whether a unit acts: as it says; unsaid, whether it has an image or a model (upstream: it does not)."""
    if "enabled" in given.asked:
        return given.flag("enabled")
    return given.values["image"] not in (None, "") or given.text("model").lower() not in ("", "none")


def translate_unit(
    unit: Json, at: Path, controls: Sequence[Named], has_init: bool, has_mask: bool = False
) -> Unit | None:
    """Return the unit; None where it is off. `has_init`: a unit without an image sees the picture that is changed.

    `has_mask`: of that picture a part is drawn anew. Raises WireError.
    """
    if not isinstance(unit, dict):
        raise WireError.of_fields(Fault(at, f"a unit is an object (given: {shortened(unit)})", "type_error.dict"))
    given = read_fields(UNIT, _renamed(unit, at), at)
    if not is_enabled(given):  # whatever else it says: clients keep what a unit had, also what is not here
        return None
    resize, mode = _choice(given, "resize_mode", RESIZE, at), _choice(given, "control_mode", MODES, at)
    if given.text("hr_option") not in ("Both", "Low res only", "High res only"):
        raise _fault(at, "hr_option", "permitted: 'Both', 'Low res only', 'High res only'")
    start, end = given.number("guidance_start"), given.number("guidance_end")
    if start > end:
        raise _fault(at, "guidance_start", f"guidance_start({start}) > guidance_end({end})")
    layers = _layers(given, at)
    module = _module(given, at)
    image, mask = _images(given, at)
    if image is None and not has_init:
        raise _fault(at, "image", "the unit is enabled but has no image: send one, or enabled false")
    if module.known.name == KEEPS_THE_REST and not has_mask:
        raise _fault(
            at,
            "module",
            f"{KEEPS_THE_REST} keeps what is not masked, as img2img with a mask does: send the picture and the mask"
            " there, or choose inpaint_global_harmonious",
        )
    image, mask, seen = _seen(image, mask, module, at)
    control = _control(given, module, controls, at)
    chosen = _thresholds(given, module)
    params = module.params(*chosen[1:])
    found = Unit(
        fields={
            "name": control.name,
            "image": image,
            "annotate": module.annotator,
            "params": {} if module.beside else params,
            "resolution": _resolution(given, module),
            "strength": given.number("weight"),
            "layers": layers,
            "start": start,
            "end": end,
            "mode": mode[0],
            "resize": resize[0],
            "region": read_image(given.values["effective_region_mask"], (*at, "effective_region_mask")),
            "mask": mask,
            "passes": PASSES[given.text("hr_option").lower()],
            "crop": given.flag("inpaint_crop_input_image"),
            "task": _task(given, module),
            "mix": given.flag("mix"),
        },
        shown=given.flag("save_detected_map"),
        text=_infotext(given, control, chosen, resize[1], mode[1]),
        warnings=(*given.warnings, *seen, *_idle_model(given, module, at)),
    )
    return found if module.beside is None else _with_fix(found, module.beside, params)


_OF_FIX = ("image", "annotate", "resize", "passes", "crop")


def _with_fix(unit: Unit, name: str, params: Mapping[str, object]) -> Unit:
    """Return the unit with a colour fix beside its model; without a model, as one. As strong as the unit, 1 at most.

    A1111 parity: in every step and everywhere, whatever span, mode, layers and region say of the model's part.
    """
    strength = min(float(str(unit.fields["strength"])), 1.0)
    fix = {"name": name, "params": params, "strength": strength, **{key: unit.fields[key] for key in _OF_FIX}}
    if unit.fields["name"] != name:
        return replace(unit, beside=fix)
    return replace(unit, fields=fix | {key: unit.fields[key] for key in ("start", "end", "region")})


def _fault(at: Path, name: str, message: str) -> WireError:
    return WireError.of_fields(Fault((*at, name), message))


def _choice(given: Given, name: str, choices: Mapping[str, tuple[str, str]], at: Path) -> tuple[str, str]:
    """Return what a label or an older version's number means."""
    value = given.values[name]
    if isinstance(value, int) and not isinstance(value, bool):
        labels = _RESIZE_NUMBERS if name == "resize_mode" else tuple(choices)
        value = labels[value] if 0 <= value < len(labels) else None
    label = value.strip().lower() if isinstance(value, str) else ""
    if label not in choices:
        known = ", ".join(dict.fromkeys(repr(shown) for _, shown in choices.values()))
        raise _fault(at, name, f"permitted: {known} (given: {shortened(given.values[name])})")
    return choices[label]


def _task(given: Given, module: Module) -> str | None:
    """Return which condition the image is: A1111's words for ControlNet Union, or a task's own name.

    "Soft Edge" and "Hard Edge" say a kind only: the module says which of it, where it is one.
    """
    told = given.text("union_control_type").strip()
    if told.lower() in ("", "unknown"):
        return None
    choices = TASKS.get(told.lower(), (told,))
    return module.annotator if module.annotator in choices else choices[0]


def _layers(given: Given, at: Path) -> list[Json]:
    weights = given.items("advanced_weighting")
    if weights and len(weights) not in NUM_LAYERS:
        raise _fault(
            at,
            "advanced_weighting",
            f"13 weights are expected; SDXL 10, T2I-Adapters 4, IP-Adapters 16 or 11 (given: {len(weights)})",
        )
    numbers: list[Json] = [
        coerced(w, "float", (*at, "advanced_weighting", i), 0.0, 4.0) or 0.0 for i, w in enumerate(weights)
    ]
    if (middle := _MIDDLE.get(len(numbers))) is not None:
        numbers.append(numbers.pop(middle))
    return numbers


def _module(given: Given, at: Path) -> Module:
    try:
        return find_module(given.text("module") or "none")
    except UnknownName as error:
        raise _fault(at, "module", f"module({given.text('module')[:80]}) not found. {error}") from None


def _control(given: Given, module: Module, controls: Sequence[Named], at: Path) -> Named:
    """Return the control of a unit: its model; without one what the module is by itself, or beside a model."""
    if module.control is not None:
        return Named(module.control, "None")
    name = given.text("model")
    if name.strip().lower() in ("", "none"):
        if module.beside is not None:
            return Named(module.beside, "None")
        known = ", ".join(control.title for control in controls) or "none"
        raise _fault(at, "model", f"the unit is enabled but names no model. Known: {known}")
    try:
        return find_named("control", name, controls, containing=True)
    except RequestError as error:
        raise _fault(at, "model", str(error)) from None


def _idle_model(given: Given, module: Module, at: Path) -> tuple[str, ...]:
    """Return what is to be said of a model beside a module that needs none. A1111 parity: it is not loaded."""
    if module.control is None or given.text("model").strip().lower() in ("", "none"):
        return ()
    where = ".".join(str(part) for part in at)
    return (f"{where}.model does nothing: the module {module.known.name} needs no model.",)


def _images(given: Given, at: Path) -> tuple[str | None, str | None]:
    """Return the unit's image and mask, in whatever form they came."""
    value, mask = given.values["image"], given.values["mask"]
    if isinstance(value, list):
        if len(value) == 2 and not any(isinstance(part, dict) for part in value):
            value = {"image": value[0], "mask": value[1]}
        elif len(value) == 1:
            value = value[0]
        elif value:
            raise _fault(
                at, "image", f"one image a unit is possible here, of an IP-Adapter {MAX_UNITS} (given: {len(value)})"
            )
        else:
            value = None
    if isinstance(value, dict):
        mask, value = (value.get("mask") if mask in (None, "") else mask), value.get("image")
    return read_image(value, (*at, "image")), read_image(mask, (*at, "mask"))


def _seen(
    image: str | None, mask: str | None, module: Module, at: Path
) -> tuple[str | None, str | None, tuple[str, ...]]:
    """Return the image and the mask that a module is shown, and what is to be said of them.

    A1111 parity: where nothing is to be filled, a mask with something on it is the drawing itself ("scribble mode");
    an empty or a full one is passed over.
    """
    if mask is None or module.annotator == INPAINT or not mask.startswith("data:"):
        return image, mask, ()
    try:
        drawn = decode(*bytes_of(mask, Limits(paths=False)))[:, :, 0]
    except BadImage as error:
        raise _fault(at, "mask", str(error)) from None
    if drawn.max() <= _EMPTY or drawn.min() >= _FULL:
        return image, None, ()
    where = ".".join(str(part) for part in at)
    return mask, None, (f"{where}.mask is the drawing, as in A1111: the module {module.known.name} fills nothing.",)


def _resolution(given: Given, module: Module) -> int | None:
    takes_none = module.annotator in ("none", INPAINT)
    return None if given.flag("pixel_perfect") or takes_none else _thresholds(given, module)[0]


def _thresholds(given: Given, module: Module) -> tuple[int, float, float]:
    """Return processor_res, threshold_a and threshold_b: out of its slider's range each is the slider's default."""
    resolution = module.resolution(given.number("processor_res"))
    sliders = module.threshold_sliders
    thresholds: list[float] = [HIDDEN, HIDDEN]
    for i, (name, slider) in enumerate(zip(("threshold_a", "threshold_b"), sliders, strict=False)):
        value = given.number(name)
        thresholds[i] = float(value) if slider.min <= value <= slider.max else slider.value
    return 512 if resolution is None else resolution, thresholds[0], thresholds[1]


def _infotext(given: Given, control: Named, chosen: tuple[int, float, float], resize: str, mode: str) -> str:
    """Return the unit as A1111 writes it into a picture: these eleven entries, in this order."""
    entries = {
        "Module": given.text("module") or "none",
        "Model": control.title,
        "Weight": float(given.number("weight")),
        "Resize Mode": resize,
        "Processor Res": chosen[0],
        "Threshold A": chosen[1],
        "Threshold B": chosen[2],
        "Guidance Start": float(given.number("guidance_start")),
        "Guidance End": float(given.number("guidance_end")),
        "Pixel Perfect": given.flag("pixel_perfect"),
        "Control Mode": mode,
    }
    return ", ".join(f"{name}: {value}" for name, value in entries.items())
