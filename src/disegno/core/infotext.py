"""How a picture was made, as A1111 writes it into the picture: prompt, negative prompt, and one line of parameters.

a (red:1.2) car
Negative prompt: blurry
Steps: 20, Sampler: Euler, Schedule type: Automatic, CFG scale: 7.0, Seed: 1, Size: 512x512, Version: 0.1.0
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from disegno.core.freeu import FreeU
from disegno.core.guide import Guide
from disegno.core.request import (
    COLOUR_FIX,
    FIDELITY,
    REFERENCES,
    SHARPNESS,
    VARIATION,
    ControlMode,
    ControlPass,
    ControlUnit,
    Emphasis,
    InpaintFill,
    LoraUse,
    Region,
    Request,
    ResizeMode,
    Scalar,
)
from disegno.prompts.emphasis import uses_emphasis

Value = str | int | float | bool | None

# A1111 parity: the order of what its core writes; everything else follows in the order in which it was added.
_ORDER = (
    *("Steps", "Sampler", "Schedule type", "CFG scale", "Image CFG scale", "Seed", "Face restoration", "Size"),
    *("Model hash", "Model", "FP8 weight", "Cache FP16 weight for LoRA", "VAE hash", "VAE", "Variation seed"),
    *("Variation seed strength", "Seed resize from", "Denoising strength", "Conditional mask weight", "Clip skip"),
    *("ENSD", "Token merging ratio", "Token merging ratio hr", "Init image hash", "RNG", "Tiling"),
)
_LAST = ("Version", "User")
_MIN_PAIRS = 3  # a last line with fewer is no line of parameters
_QUOTED = re.compile(r'"(?:\\.|[^\\"])+"')
_SIZE = re.compile(r"(\d{1,9})x(\d{1,9})")
_VERSION = re.compile(r"v?(\d{1,9})\.(\d{1,9})\.(\d{1,9})(?:-(?:RC-)?(\d{1,9}))?(?:-.*)?")
_NEGATIVE = "Negative prompt:"

# A1111 parity: what a text that says nothing of it means.
_DEFAULTS: Mapping[str, Value] = {
    "Clip skip": "1",
    "Hires resize-1": 0,
    "Hires resize-2": 0,
    "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
    "Masked area padding": 32,
    "RNG": "GPU",
    "Schedule type": "Automatic",
    "Schedule max sigma": 0,
    "Schedule min sigma": 0,
    "Schedule rho": 0,
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
    "Refiner switch by sampling steps": False,
}
EMPHASIS: Mapping[Emphasis, str] = {"original": "Original", "no-norm": "No norm", "ignore": "Ignore", "none": "None"}
FILLS: Mapping[InpaintFill, str] = {
    "original": "original",
    "fill": "fill",
    "noise": "latent noise",
    "nothing": "latent nothing",
}
GUIDE = {
    "PAG Scale": "pag",
    "PAG Start": "pag_start",
    "PAG End": "pag_end",
    "SLG Scale": "slg",
    "SLG Layers": "slg_layers",
    "SLG Start": "slg_start",
    "SLG End": "slg_end",
    "APG": "apg",
    "APG Norm": "apg_norm",
    "APG Momentum": "apg_momentum",
    "APG Parallel": "apg_parallel",
    "CFG Zero Star": "zero_star",
    "CFG Zero Steps": "zero_steps",
}
"""What a text calls each field of a Guide."""
FREEU = {
    "freeu_b1": "b1",
    "freeu_b2": "b2",
    "freeu_s1": "s1",
    "freeu_s2": "s2",
    "freeu_start": "start",
    "freeu_end": "end",
}
"""What a text calls each field of a FreeU: Forge's names."""
FREEU_ON, FREEU_VERSION = "freeu_enabled", "freeu_version"
HIRES_REFINER: Mapping[ControlPass, str] = {"hires": "second pass", "first": "first pass", "both": "both passes"}
_RESIZES: Mapping[ResizeMode, str] = {
    "stretch": "Just Resize",
    "crop": "Crop and Resize",
    "fill": "Resize and Fill",
}
_MODES: Mapping[ControlMode, str] = {
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "control": "ControlNet is more important",
}
_PROCESSOR_RES = 512  # A1111 parity: what stands there where pixels meet one to one


# ---- writing


def quoted(value: Value) -> Value:
    """Return a value as it stands in the line: as a JSON text where it has a comma, a colon or a new line in it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and set(value) & set(",:\n") else value


def unquoted(text: str) -> str:
    """Return what `quoted` was given; text that is not such a JSON text as it is."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def write_infotext(prompt: str, negative: str, values: Mapping[str, Value]) -> str:
    """Return the text of one picture. What is None is left out; a value equal to its name is written once."""
    first = [name for name in _ORDER if name in values]
    others = [name for name in values if name not in _ORDER and name not in _LAST]
    names = [*first, *others, *(name for name in _LAST if name in values)]
    pairs = [(name, value) for name in names if (value := values[name]) is not None]
    line = ", ".join(name if name == value else f"{name}: {quoted(value)}" for name, value in pairs)
    below = f"\n{_NEGATIVE} {negative}" if negative else ""
    return f"{prompt}{below}\n{line}".strip()


def with_loras(prompt: str, loras: Sequence[LoraUse]) -> str:
    """Return the prompt with tags for LoRAs that it does not name: <lora:name:text weight:net weight:rank>."""
    return " ".join([prompt, *map(_tag, loras)]).strip()


def _tag(use: LoraUse) -> str:
    text = use.strength if use.text_strength is None else use.text_strength
    net = f":unet={use.strength:g}" if use.strength != text else ""
    rank = f":dyn={use.rank}" if use.rank else ""
    return f"<lora:{use.name}:{text:g}{net}{rank}>"


def unit_text(unit: ControlUnit, annotator: str | None) -> str:
    """Return a control as A1111's ControlNet extension writes it. `annotator`: what drew its condition, if any did."""
    module, thresholds = _fileless(unit)
    entries = {
        "Module": module or annotator or "none",
        "Model": "None" if module else unit.name,
        "Weight": unit.strength,
        "Resize Mode": _RESIZES[unit.resize],
        "Processor Res": unit.resolution or _PROCESSOR_RES,
        **dict(zip(("Threshold A", "Threshold B"), thresholds, strict=False)),
        "Guidance Start": unit.start,
        "Guidance End": unit.end,
        "Pixel Perfect": unit.resolution is None,
        "Control Mode": _MODES[unit.mode],
    }
    return ", ".join(f"{name}: {value}" for name, value in entries.items())


def _fileless(unit: ControlUnit) -> tuple[str | None, tuple[Scalar, ...]]:
    """Return the module and the thresholds that a control without a file is in A1111; None: it is a model."""
    if unit.name in REFERENCES:
        return REFERENCES[unit.name], (unit.params.get("fidelity", FIDELITY),)
    if unit.name != COLOUR_FIX:
        return None, ()
    variation, sharpness = unit.params.get("variation", VARIATION), unit.params.get("sharpness", SHARPNESS)
    return ("tile_colorfix+sharp", (variation, sharpness)) if sharpness else ("tile_colorfix", (variation,))


def of_image(request: Request, image: int) -> Request:
    """Return the request with its hires pass's words as they are of one image, in full, with tags for its LoRAs.

    So are its regions', without such tags.
    """
    regions = (replace(one, prompt=one.prompts[image], prompts=()) if one.prompts else one for one in request.regions)
    request = replace(request, regions=tuple(regions))
    hires = request.hires
    if hires is None:
        return request
    prompt = hires.prompts[image] if hires.prompts else hires.prompt
    prompt = None if prompt is None else with_loras(prompt, request.loras)
    negative = hires.negatives[image] if hires.negatives else hires.negative
    return replace(request, hires=replace(hires, prompt=prompt, negative=negative, prompts=(), negatives=()))


def values_of(request: Request, seed: int, subseed: int, labels: Mapping[str, str]) -> dict[str, Value]:
    """Return what is written of one picture of a concrete request. `labels`: what its files and controls are called."""
    varied, resized = request.subseed_strength > 0, request.seed_width and request.seed_height
    return {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "Schedule type": request.schedule,
        "CFG scale": request.cfg,
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Variation seed": subseed if varied else None,
        "Variation seed strength": request.subseed_strength if varied else None,
        "Seed resize from": f"{request.seed_width}x{request.seed_height}" if resized else None,
        "Denoising strength": _denoising(request),
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "ENSD": request.seed_delta or None,
        "RNG": request.noise_source.upper(),
        "Tiling": "True" if request.seamless else None,
        **dict(_later(request)),
        **labels,
    }


def _denoising(request: Request) -> float | None:
    if request.init is not None:
        return request.init.denoise
    return request.hires.denoise if request.hires is not None else None


def _later(request: Request) -> Iterator[tuple[str, Value]]:
    """Yield what A1111 keeps as extra parameters."""
    init, hires = request.init, request.hires
    if init is not None and init.mask is not None:
        yield "Mask mode", "Inpaint not masked" if init.invert else None
        yield "Mask blur", init.mask_blur or None
        yield "Inpaint area", "Only masked" if init.only_masked else None
        yield "Masked area padding", init.padding if init.only_masked else None
        yield "Masked content", FILLS[init.fill] if init.fill not in (None, "original") else None
    if init is not None:
        yield "Noise multiplier", init.noise if init.noise != 1 else None
        yield "Extra noise", init.extra_noise or None
    if hires is not None:
        if hires.width or hires.height:
            yield "Hires resize", f"{hires.width or 0}x{hires.height or 0}"
        else:
            yield "Hires upscale", hires.scale
        yield "Hires steps", hires.steps
        yield "Hires upscaler", hires.upscaler
        yield "Hires checkpoint", hires.model
        yield "Hires CFG Scale", hires.cfg if hires.cfg != request.cfg else None
        yield "Hires sampler", hires.sampler if hires.sampler != request.sampler else None
        yield "Hires schedule type", hires.schedule if hires.schedule != request.schedule else None
        yield "Hires prompt", hires.prompt
        yield "Hires negative prompt", hires.negative
    for n, region in enumerate(request.regions, 1):
        yield f"Region {n}", _region_text(region)
    yield "Regions base weight", request.base_weight if request.regions else None
    if (refiner := request.refiner) is not None:
        yield "Refiner", refiner.model
        yield "Refiner switch at", refiner.at
        yield "Refiner switch by sampling steps", (refiner.share == "steps") or None
        usual = hires is None or refiner.passes == "hires"  # A1111 parity
        yield "Hires refiner", None if usual else HIRES_REFINER[refiner.passes]
    yield "Eta DDIM" if str(request.sampler).startswith("DDIM") else "Eta", request.eta
    yield "Sigma churn", request.churn or None
    yield "Sigma tmin", request.churn_min or None
    yield "Sigma tmax", request.churn_max or None
    yield "Sigma noise", request.churn_noise if request.churn_noise != 1 else None
    yield "NGMS", request.negative_min or None
    yield "NGMS all steps", (bool(request.negative_min) and request.negative_min_all) or None
    yield "Skip Early CFG", request.cfg_start or None
    if request.guide is not None:
        yield from _guide(request.guide)
    if request.freeu is not None and request.freeu.strength:
        yield from _freeu(request.freeu)
    yield "Emphasis", EMPHASIS[request.emphasis] if request.emphasis != "original" else None
    yield "Pad conds", request.pad_texts or None
    yield "Old prompt editing timelines", request.old_timelines or None


def _region_text(region: Region) -> str:
    """Return a region's words, where they hold, and their weight; no program but this one knows such a line."""
    box = {name: getattr(region, name) for name in ("x", "y", "w", "h")}
    place = "mask" if region.mask else " ".join(f"{name}={value:g}" for name, value in box.items() if value is not None)
    return f"{region.prompt} ({place} weight={region.weight:g})"


def _guide(guide: Guide) -> Iterator[tuple[str, Value]]:
    """Yield what is said of guidance beside the scale; A1111 has it by extensions alone."""
    usual = Guide()
    for name, field in GUIDE.items():
        value = getattr(guide, field)
        if getattr(guide, field.partition("_")[0], True) and value != getattr(usual, field):
            yield name, " ".join(map(str, value)) if isinstance(value, tuple) else value


def _freeu(freeu: FreeU) -> Iterator[tuple[str, Value]]:
    """Yield what is said of FreeU, as Forge says it, which has no strength: the factors that come of it."""
    yield FREEU_ON, True
    factors = freeu.factors._asdict() | {"start": freeu.start, "end": freeu.end}
    for name, of_it in FREEU.items():
        yield name, factors[of_it]
    yield FREEU_VERSION, freeu.version if freeu.version == 1 else None  # Forge has the second alone


# ---- reading


def said_by(text: str) -> dict[str, str]:
    """Return what a picture's text says, by A1111's names, "NxM" as two values, -1 and -2; the prompts in any case.

    In linear time.
    """
    *lines, last = text.strip().split("\n")
    pairs = list(_pairs(last))
    if len(pairs) < _MIN_PAIRS:
        lines, pairs = [*lines, last], []
    prompt, negative = _prompts(lines)
    found: dict[str, str] = {}
    for name, value in pairs:
        plain = unquoted(value)
        if size := _SIZE.fullmatch(plain):
            found |= {f"{name}-1": size[1], f"{name}-2": size[2]}
        elif value:
            found[name] = plain
    return found | {"Prompt": prompt, "Negative prompt": negative}


def read_infotext(text: str) -> dict[str, Value]:
    """Return what a picture's text says and means, by A1111's names: with what it leaves out, and its version implies.

    Values are text, but for what is filled in.
    """
    found: dict[str, Value] = dict(said_by(text))
    prompt, negative = str(found["Prompt"]), str(found["Negative prompt"])
    if "Hypernet" in found:
        found["Prompt"] = f"{prompt}<hypernet:{found['Hypernet']}:{found.get('Hypernet strength', '1.0')}>"
    found = {**_DEFAULTS, **found}
    if found["FP8 weight"] != "Disable":
        found.setdefault("Cache FP16 weight for LoRA", False)
    if uses_emphasis(prompt) or uses_emphasis(negative):
        found.setdefault("Emphasis", "Original")
    return {**found, **_old_hires(found), **_by_version(found)}


def _prompts(lines: Sequence[str]) -> tuple[str, str]:
    parts: tuple[list[str], list[str]] = [], []
    into = 0
    for line in (line.strip() for line in lines):
        if line.startswith(_NEGATIVE):
            into, line = 1, line.removeprefix(_NEGATIVE).strip()
        if line or parts[into]:
            parts[into].append(line)
    return "\n".join(parts[0]), "\n".join(parts[1])


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """Yield each name and its value as it is written; an empty value too."""
    place = 0
    while (colon := line.find(":", place)) >= 0:
        name = _name_before(line, place, colon)
        if name is None:
            place = colon + 1
            continue
        start = colon + 1
        while start < len(line) and line[start].isspace():
            start += 1
        quote = _QUOTED.match(line, start)
        end = quote.end() if quote is not None and line[quote.end() : quote.end() + 1] in ("", ",") else -1
        if end < 0:
            end = found if (found := line.find(",", start)) >= 0 else len(line)
        yield name, line[start:end]
        place = end + 1


def _name_before(line: str, start: int, colon: int) -> str | None:
    """Return the name that ends at a colon: two or more word characters, spaces, - and /, the first no space."""
    begin = colon
    while begin > start and (line[begin - 1].isalnum() or line[begin - 1] in "_ -/"):
        begin -= 1
    name = line[begin:colon].lstrip(" -/")
    return name if len(name) > 1 else None


def _old_hires(found: Mapping[str, Value]) -> dict[str, Value]:
    """Return what "First pass size" of A1111 before 1.0 says in today's names: the size was the second pass's then."""
    first, size = _sides(found, "First pass size", ""), _sides(found, "Size", "512")
    if not first or not size:
        return {}
    if 0 in first and all(size):
        scale = math.sqrt(512 * 512 / (size[0] * size[1]))
        first = [math.ceil(scale * side / 64) * 64 for side in size]
    return {"Size-1": first[0], "Size-2": first[1], "Hires resize-1": size[0], "Hires resize-2": size[1]}


def _sides(found: Mapping[str, Value], name: str, default: str) -> list[int]:
    """Return the two sides of a size; none where one of them is no number."""
    told = [str(found.get(f"{name}-{n}", default)) for n in (1, 2)]
    return [int(side) for side in told] if _SIZE.fullmatch("x".join(told)) else []


def _by_version(found: Mapping[str, Value]) -> dict[str, Value]:
    """Return how A1111's older versions did what today's do otherwise."""
    match = _VERSION.fullmatch(str(found.get("Version", "")))
    if match is None:
        return {}
    version = tuple(int(part or 0) for part in match.groups())
    told: dict[str, Value] = {}
    if version < (1, 6, 0, 0) and "[" in str(found["Prompt"]):
        told["Old prompt editing timelines"] = True
    if version < (1, 6, 0, 0) and found.get("Sampler") in ("DDIM", "PLMS"):
        told["Pad conds v0"] = True
    if version < (1, 7, 0, 225):
        told["Downcast alphas_cumprod"] = True
    if version < (1, 8, 0, 0) and "Refiner" in found:
        told["Refiner switch by sampling steps"] = True
    return told
