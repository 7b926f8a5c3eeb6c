"""From what A1111's text says of a picture to the fields of a Request, and what of it cannot be done again here."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from disegno.core.errors import RequestError
from disegno.core.guide import steps_of_forge
from disegno.core.infotext import (
    EMPHASIS,
    FILLS,
    FREEU,
    FREEU_ON,
    FREEU_VERSION,
    GUIDE,
    HIRES_REFINER,
    Value,
    read_infotext,
)


@dataclass(frozen=True)
class Told:
    """The fields of a Request, and doubts in plain words. `models`: what the model may be found by, the surest first.

    `init`, `masked`: of its InitImage, where it had one, and where that had a mask; the pictures are not in the text.
    """

    fields: dict[str, Any]
    init: dict[str, Any]
    masked: dict[str, Any]
    models: tuple[str, ...]
    doubts: tuple[str, ...]


def _number(value: str) -> float:
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(value)
    return number


def _claim(value: str) -> bool:
    return value == "True"


def _numbers(value: str) -> tuple[int, ...]:
    return tuple(int(part) for part in value.split())


_GUIDE_KINDS: Mapping[str, Callable[[str], Any]] = {
    "slg_layers": _numbers,
    "apg": _claim,
    "zero_star": _claim,
    "zero_steps": int,
}
_FIELDS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "Prompt": ("prompt", str),
    "Negative prompt": ("negative", str),
    "Steps": ("steps", int),
    "Sampler": ("sampler", str),
    "Schedule type": ("schedule", str),
    "CFG scale": ("cfg", _number),
    "Image CFG scale": ("image_cfg", _number),
    "Seed": ("seed", int),
    "Size-1": ("width", int),
    "Size-2": ("height", int),
    "Variation seed": ("subseed", int),
    "Variation seed strength": ("subseed_strength", _number),
    "Seed resize from-1": ("seed_width", int),
    "Seed resize from-2": ("seed_height", int),
    "Clip skip": ("clip_skip", int),
    "ENSD": ("seed_delta", int),
    "Sigma churn": ("churn", _number),
    "Sigma tmin": ("churn_min", _number),
    "Sigma tmax": ("churn_max", _number),
    "Sigma noise": ("churn_noise", _number),
    "Tiling": ("seamless", _claim),
    "VAE": ("vae", str),
    "NGMS": ("negative_min", _number),
    "NGMS all steps": ("negative_min_all", _claim),
    "Skip Early CFG": ("cfg_start", _number),
    "Pad conds": ("pad_texts", _claim),
    "Old prompt editing timelines": ("old_timelines", _claim),
}
_HIRES: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "Denoising strength": ("denoise", _number),
    "Hires upscale": ("scale", _number),
    "Hires steps": ("steps", int),
    "Hires upscaler": ("upscaler", str),
    "Hires sampler": ("sampler", str),
    "Hires schedule type": ("schedule", str),
    "Hires checkpoint": ("model", str),
    "Hires CFG Scale": ("cfg", _number),
    "Hires prompt": ("prompt", str),
    "Hires negative prompt": ("negative", str),
    "Hires resize-1": ("width", int),
    "Hires resize-2": ("height", int),
}
_REFINER: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "Refiner": ("model", str),
    "Refiner switch at": ("at", _number),
    "Refiner switch by sampling steps": ("share", lambda text: "steps" if text == "True" else "noise"),
    "Hires refiner": ("passes", lambda text: _REFINED.get(text, "hires")),
}
_GUIDE: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    name: (field, _GUIDE_KINDS.get(field, _number)) for name, field in GUIDE.items()
}
_FREEU: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    **{name: (field, _number) for name, field in FREEU.items()},
    FREEU_VERSION: ("version", int),
}
_FORGE_PAG = ("pagi_enabled", "pagi_scale", "pagi_attenuation", "pagi_start_step", "pagi_end_step")
"""What Forge calls its perturbed attention guidance."""
_REFINED = {name: passes for passes, name in HIRES_REFINER.items()}
_INIT: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "Denoising strength": ("denoise", _number),
    "Noise multiplier": ("noise", _number),
    "Extra noise": ("extra_noise", _number),
}
_MASKED: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "Mask mode": ("invert", lambda text: text == "Inpaint not masked"),
    "Mask blur": ("mask_blur", int),
    "Inpaint area": ("only_masked", lambda text: text == "Only masked"),
    "Masked area padding": ("padding", int),
    "Masked content": ("fill", lambda text: _FILLS.get(text, "original")),
    "Conditional mask weight": ("mask_weight", _number),
}
_FILLS = {name: fill for fill, name in FILLS.items()}
_SAME = ("Use same sampler", "Use same scheduler", "Use same checkpoint", "", 0)
_NOISE = {"CPU": "cpu", "NV": "nv", "GPU": "nv"}  # an NVIDIA card draws the numbers that NV emulates
_UNIT = "ControlNet"
_UNIT_DEFAULTS: Mapping[str, str | float | bool] = {  # A1111 parity: of ControlNetUnit.parse
    "module": "none",
    "model": "None",
    "weight": 1.0,
    "resize_mode": "Crop and Resize",
    "processor_res": 512,
    "threshold_a": 0.5,
    "threshold_b": 0.5,
    "guidance_start": 0.0,
    "guidance_end": 1.0,
    "pixel_perfect": False,
    "control_mode": "Balanced",
}
_UNDERSTOOD = {
    "Eta",
    "Eta DDIM",
    "First pass size-1",
    "First pass size-2",
    "Model",
    "Model hash",
    "VAE hash",
    "RNG",
    "Emphasis",
    "Version",
    "Lora hashes",
    "TI hashes",
    "User",
    "Sampler",
}
_WITHOUT_EFFECT = {  # what is said of everything, and means nothing here unless it is something else
    "Schedule max sigma": "0",
    "Schedule min sigma": "0",
    "Schedule rho": "0",
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
    "Cache FP16 weight for LoRA": "False",
}


def read_unit(text: str) -> dict[str, str | float | bool]:
    """Return a ControlNet unit as A1111's extension wrote it, by its fields' names. Raises ValueError."""
    unit = dict(_UNIT_DEFAULTS)
    for pair in text.split(", "):
        name, value = pair.split(": ")
        field = name.lower().replace(" ", "_")
        unit[field] = type(_UNIT_DEFAULTS.get(field, ""))(value) if field != "pixel_perfect" else value == "True"
    return unit


def _how_to(text: str) -> str:
    """Return the words of a command line that ask for the control again."""
    try:
        unit = read_unit(text)
    except ValueError:
        return "with --control"
    ends = {"strength": unit["weight"], "start": unit["guidance_start"], "end": unit["guidance_end"]}
    kept = {"strength": 1.0, "start": 0.0, "end": 1.0}
    words = "".join(f",{name}={value:g}" for name, value in ends.items() if value != kept[name])
    return f"--control {str(unit['model']).split(' [')[0]}=IMAGE,annotate={unit['module']}{words}"


def told_of(text: str) -> Told:
    """Return what a picture's text says, as fields of a Request. Raises RequestError where a value cannot be read."""
    found = read_infotext(text)
    if "Steps" not in found:
        raise RequestError("The picture's text is not A1111's: it says nothing of steps. Give a picture that it made.")
    eta = "Eta DDIM" if str(found.get("Sampler")).startswith("DDIM") else "Eta"  # A1111 parity: two settings
    fields = _read(found, {**_FIELDS, eta: ("eta", _number)})
    fields["noise_source"] = _NOISE.get(str(found["RNG"]), "nv")
    names = {name: mode for mode, name in EMPHASIS.items()}
    fields["emphasis"] = names.get(str(found.get("Emphasis", "Original")), "original")
    hires = _is_hires(found)
    if hires:
        said = _read(found, _HIRES)
        kept = ("denoise", "cfg")  # at 0 they say something
        fields["hires"] = {name: value for name, value in said.items() if name in kept or value not in _SAME}
    if found.get("Refiner", "") not in ("", "None"):
        fields["refiner"] = {"at": 0.0, "passes": "hires"} | _read(found, _REFINER)  # A1111 parity: left out, it is so
    if guide := _read(found, _GUIDE) or _forge_guide(found, _steps_done(found, hires)):
        fields["guide"] = guide
    if found.get(FREEU_ON) == "True":
        fields["freeu"] = _read(found, _FREEU)
    changed = "Denoising strength" in found and not hires
    init = _read(found, _INIT) if changed else {}
    masked = {"mask_blur": 0} | _read(found, _MASKED) if changed else {}
    return Told(fields, init, masked, _models(found), tuple(_doubts(found)))


def models_of(text: str) -> tuple[str, ...]:
    """Return what the model of a picture's text may be found by, the surest first."""
    return _models(read_infotext(text))


def _models(found: Mapping[str, Value]) -> tuple[str, ...]:
    return tuple(str(found[name]) for name in ("Model hash", "Model") if name in found)


def _read(found: Mapping[str, Value], table: Mapping[str, tuple[str, Callable[[str], Any]]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, (field, kind) in table.items():
        if name in found:
            try:
                fields[field] = kind(str(found[name]))
            except ValueError:
                raise RequestError(
                    f"The picture's text says {name}: {str(found[name])[:40]!r}, which is no number."
                ) from None
    return fields


def _steps_done(found: Mapping[str, Value], hires: bool) -> int:
    """Return how many steps drew the picture: of one that was changed a share of those that are said."""
    said = _read(found, {"Steps": ("steps", int), "Denoising strength": ("denoise", _number)})
    steps, denoise = said.get("steps", 0), said.get("denoise", 1.0)
    return steps if hires or "denoise" not in said else int(min(denoise, 0.999) * steps) + 1


def _forge_guide(found: Mapping[str, Value], num_steps: int) -> dict[str, Any]:
    """Return the guidance that Forge tells under its own names; nothing where it did nothing."""
    said = _read(found, {name: (name, _number) for name in _FORGE_PAG[1:]})
    span = steps_of_forge(said.get("pagi_start_step", 0.0), said.get("pagi_end_step", 1.0), num_steps)
    if span is None or said.get("pagi_scale", 0.0) <= 0:
        return {}
    return {"pag": said["pagi_scale"], "pag_start": span[0], "pag_end": span[1]}


def _is_hires(found: Mapping[str, Value]) -> bool:
    return "Hires upscale" in found or str(found["Hires resize-1"]) != "0" or str(found["Hires resize-2"]) != "0"


def left_of(found: Mapping[str, Value], taken: Collection[str]) -> list[str]:
    """Return the names of what a text says that is neither taken over nor without effect, units of controls apart."""
    return [
        name
        for name, value in found.items()
        if not (name in taken or name in _UNDERSTOOD or _WITHOUT_EFFECT.get(name) == str(value))
        and not name.startswith(_UNIT)
    ]


def _doubts(found: Mapping[str, Value]) -> list[str]:
    """Return what of the text was not taken over, in plain words."""
    of_parts = (_FIELDS, _HIRES, _REFINER, _GUIDE, _FREEU, _INIT, _MASKED)
    weakens = str(found.get("pagi_attenuation", "0")) not in ("0", "0.0")
    forges = {name for name in _FORGE_PAG if name != "pagi_attenuation" or not weakens}
    left = left_of(found, {FREEU_ON, *forges, *(name for part in of_parts for name in part)})
    told = ", ".join(f"{name}: {found[name]}" for name in left)
    doubts = [f"Not taken over from the picture's text: {told}."] if left else []
    for name, value in found.items():
        if name.startswith(_UNIT):
            doubts.append(f"{name} drew with it, and its image is not in the picture: give it, {_how_to(str(value))}.")
    if found["RNG"] == "GPU":
        doubts.append("Its noise came from a graphics card: the NV source draws the numbers that an NVIDIA card would.")
    return doubts
