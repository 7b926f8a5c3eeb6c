"""A picture's text as a request: the field `infotext` fills in what a request leaves open."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from disegno.core.errors import RequestError, UnknownName
from disegno.core.infotext import FILLS, Value, read_infotext, said_by
from disegno.core.told import left_of
from disegno.serving.a1111.coerce import Json, shortened
from disegno.serving.a1111.forms import FILL
from disegno.serving.a1111.house import House, find_named

FIELDS: Mapping[str, str] = {
    "Prompt": "prompt",
    "Negative prompt": "negative_prompt",
    "Steps": "steps",
    "Sampler": "sampler_name",
    "Schedule type": "scheduler",
    "CFG scale": "cfg_scale",
    "Seed": "seed",
    "Size-1": "width",
    "Size-2": "height",
    "Variation seed": "subseed",
    "Variation seed strength": "subseed_strength",
    "Seed resize from-1": "seed_resize_from_w",
    "Seed resize from-2": "seed_resize_from_h",
    "Denoising strength": "denoising_strength",
    "Eta": "eta",
    "Eta DDIM": "eta",
    "Sigma churn": "s_churn",
    "Sigma tmin": "s_tmin",
    "Sigma tmax": "s_tmax",
    "Sigma noise": "s_noise",
    "Refiner": "refiner_checkpoint",
    "Refiner switch at": "refiner_switch_at",
}
TXT2IMG: Mapping[str, str] = {
    "Hires upscale": "hr_scale",
    "Hires resize-1": "hr_resize_x",
    "Hires resize-2": "hr_resize_y",
    "Hires steps": "hr_second_pass_steps",
    "Hires upscaler": "hr_upscaler",
    "Hires CFG Scale": "hr_cfg",
    "Hires sampler": "hr_sampler_name",
    "Hires schedule type": "hr_scheduler",
    "Hires prompt": "hr_prompt",
    "Hires negative prompt": "hr_negative_prompt",
    "Hires checkpoint": "hr_checkpoint_name",
}
IMG2IMG: Mapping[str, tuple[str, Callable[[str], Json]]] = {
    "Mask mode": ("inpainting_mask_invert", lambda text: int(text == "Inpaint not masked")),
    "Mask blur": ("mask_blur", str),
    "Inpaint area": ("inpaint_full_res", lambda text: text == "Only masked"),
    "Masked area padding": ("inpaint_full_res_padding", str),
    "Image CFG scale": ("image_cfg_scale", str),
    "Masked content": ("inpainting_fill", lambda text: _FILLS.index(text) if text in _FILLS else 1),
}
_FILLS = [FILLS[fill] for fill in FILL]
SETTINGS: Mapping[str, str] = {
    "Clip skip": "CLIP_stop_at_last_layers",
    "ENSD": "eta_noise_seed_delta",
    "RNG": "randn_source",
    "Emphasis": "emphasis",
    "VAE": "sd_vae",
    "Tiling": "tiling",
    "NGMS": "s_min_uncond",
    "NGMS all steps": "s_min_uncond_all",
    "Skip Early CFG": "skip_early_cond",
    "Pad conds": "pad_cond_uncond",
    "Old prompt editing timelines": "use_old_scheduling",
    "Noise multiplier": "initial_noise_multiplier",
    "Extra noise": "img2img_extra_noise",
    "Conditional mask weight": "inpainting_mask_weight",
    "Refiner switch by sampling steps": "refiner_switch_by_sample_steps",
    "Hires refiner": "hires_fix_refiner_pass",
}
UNITS = "ControlNet "
_SIZES = ("Size-1", "Size-2", "Hires resize-1", "Hires resize-2")


def filled(form: str, body: Mapping[str, Json], house: House) -> tuple[dict[str, Json], list[str]]:
    """Return the body with what its infotext says where it says nothing itself, and what could not be taken over."""
    text = body.get("infotext")
    if not isinstance(text, str) or not text.strip():
        return dict(body), []
    said, meant = said_by(text), read_infotext(text)
    said.pop("Eta" if said.get("Sampler", "").startswith("DDIM") else "Eta DDIM", None)  # each is of its samplers
    table = {**FIELDS, **(TXT2IMG if form == "txt2img" else {})}
    # sizes as "First pass size" has them, of A1111 before 1.0
    told = {**said, **{name: str(meant[name]) for name in _SIZES if name in meant and meant[name] != 0}}
    fields: dict[str, Json] = {table[name]: value for name, value in told.items() if name in table and value != ""}
    if form == "img2img":
        fields |= dict(_of_the_mask(said, meant, body.get("mask") not in (None, "")))
    if form == "txt2img" and any(name.startswith("Hires ") for name in told):
        fields["enable_hr"] = True
    # A1111 parity: what a text leaves out means the default, whatever the person's settings are
    settings: dict[str, Json] = {SETTINGS[name]: value for name, value in meant.items() if name in SETTINGS}
    doubts = [
        f"The infotext's {name} was not taken over: a unit needs its image." for name in said if name[:11] == UNITS
    ]
    more = IMG2IMG if form == "img2img" else {}
    doubts += [
        f"The infotext's {name}: {shortened(said[name])} was not taken over."
        for name in left_of(said, {*table, *more, *SETTINGS})
    ]
    try:
        settings |= _model_of(said, house)
    except RequestError as error:
        doubts.append(f"The infotext's model was not taken over. {error}")
    own = body.get("override_settings")
    if settings and (own is None or isinstance(own, dict)):
        fields["override_settings"] = {
            **settings,
            **{name: value for name, value in (own or {}).items() if value is not None},
        }
    given = {name: value for name, value in body.items() if value is not None}
    merged = {"override_settings"}  # the text's settings lie under the request's own
    return {**given, **{name: value for name, value in fields.items() if name not in given or name in merged}}, doubts


def _of_the_mask(said: Mapping[str, str], meant: Mapping[str, Value], is_masked: bool) -> Iterator[tuple[str, Json]]:
    """Yield img2img's own fields. A1111 parity: of a masked picture that was changed, what is left out says something.

    It was drawn from the original, in the whole picture, with a mask that is not blurred.
    """
    changed = is_masked and "Denoising strength" in said and "Hires upscaler" not in said
    told = {"Mask blur": "0", **{name: str(value) for name, value in meant.items()}} if changed else said
    for name, (field, read) in IMG2IMG.items():
        if name in told:
            yield field, read(told[name])


def _model_of(said: Mapping[str, str], house: House) -> dict[str, Json]:
    """Return the setting of the text's model: by its hash (A1111 parity), else by its name. Raises RequestError."""
    name, digits = said.get("Model", ""), said.get("Model hash", "")
    if not name and not digits:
        return {}
    with suppress(UnknownName):
        return {"sd_model_checkpoint": find_named("model", digits, house.models).name}
    given = f"{name} [{digits}]" if name and digits else name or digits
    return {"sd_model_checkpoint": find_named("model", given, house.models).name}
